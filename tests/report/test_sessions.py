"""Which events belong to which start, and which starts to the run."""

import pytest
from run_material import Clock

from dongwu_jax.report.data_mix import data_mix
from dongwu_jax.report.restarts import list_starts
from dongwu_jax.report.run_folder import read_run_folder
from dongwu_jax.report.settings import Change, changes
from dongwu_jax.report.summary import find_state


def read(clock: Clock):
    return read_run_folder(clock.write())


def test_killed_before_the_first_checkpoint_is_the_same_run(tmp_path):
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 15)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 5)
    assert [session.lost_steps for session in read(clock).sessions] == [15, 0]


def test_afresh_after_a_checkpoint_is_another_run(tmp_path):
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 20)
    clock.pause("checkpoint", 20, seconds=1)
    clock.end("finished", 20)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 5)
    (session,) = read(clock).sessions
    assert (session.first_step, session.last_step) == (0, 5)


def test_what_is_said_while_loading_belongs_to_the_start_that_loads(tmp_path):
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 10)
    began = clock.now + 5
    clock.now += 6
    clock.event("damaged_checkpoint", step=10)
    clock.now = began
    clock.start(5, loading=3, compiling=1)
    first, second = read(clock).sessions
    assert not first.of_kind("damaged_checkpoint")
    assert len(second.of_kind("damaged_checkpoint")) == 1


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({"reason": "finished"}, "finished"),
        ({"reason": "failed", "message": "UserError: no room"}, "failed: UserError: no room"),
        (None, "killed, or the machine failed: it left no word"),
    ],
)
def test_why_a_start_ended(tmp_path, fields, ending):
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 10)
    if fields:
        clock.event("end", step=10, **fields)
    run = read(clock)
    (row,) = list_starts(run, [], running=False)
    assert row.ending == ending


def test_a_hang_is_known_by_its_file(tmp_path):
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 10)
    (tmp_path / "hang.process3.txt").write_text("stacks")  # now, decades after the clock's time
    (row,) = list_starts(read(clock), [], running=False)
    assert row.ending == "hung: see hang.process3.txt"


def test_states(tmp_path):
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 10)
    run = read(clock)
    assert find_state(run, now=clock.now + 500) == "running"
    assert find_state(run, now=clock.now + 700) == "stopped"
    clock.event("end", reason="stopped", step=10)
    assert find_state(read(clock), now=clock.now) == "stopped"


def test_half_a_line_is_passed_over(tmp_path):
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 3)
    clock.write()
    for name in ("metrics", "events"):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write('{"step": 4, "lo')
    run = read_run_folder(tmp_path)
    assert run.metrics.step.tolist() == [1, 2, 3]
    assert len(run.sessions) == 1


def test_changes_of_settings():
    before = {"optimizer": {"learning_rate": 3e-4, "clip_norm": None}, "old": {"a": 1}}
    after = {"optimizer": {"learning_rate": 2e-4, "clip_norm": None}, "new": {"b": True}}
    assert changes(before, after) == [
        Change("optimizer.learning_rate", "0.0003", "0.0002"),
        Change("new.b", "absent", "true"),
        Change("old.a", "1", "absent"),
    ]


def test_data_mix_counts_saved_steps_once(tmp_path):
    """60 saved steps of 10 samples; those of 21 to 40 were saved, damaged, and done again."""
    blend = [
        {"name": "news", "weight": 0.75, "tokens": 8000},
        {"name": "code", "weight": 0.25, "tokens": 1000},
    ]
    config = {
        "data": {
            "blend": [{"prefix": "/data/news"}, {"prefix": "/data/code"}],
            "sequence_length": 8,
            "split": "90,10,0",
        }
    }
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1, blend=blend, config=config)
    clock.event("data", first_step=0, last_step=20, samples=[150, 50])
    clock.event("data", first_step=20, last_step=40, samples=[149, 51])
    clock.train(1, 45)
    clock.start(20, loading=1, compiling=1, blend=blend, config=config)
    clock.event("data", first_step=20, last_step=60, samples=[300, 100])
    run = read(clock)
    news, code = data_mix(run.sessions, run.config)
    assert (news.planned, code.planned) == (0.75, 0.25)
    assert (news.real, code.real) == (0.75, 0.25)
    assert news.seen_tokens == 450 * 8
    assert code.epochs == pytest.approx(150 * 8 / (1000 * 0.9))
