"""What a real run writes into events.jsonl, over kills and failures."""

import json
import shutil
from pathlib import Path

import pytest
from json_lines import read_lines
from runs import run_config

from dongwu_jax.report.goodput import find_intervals, totals
from dongwu_jax.report.run_folder import read_run_folder
from dongwu_jax.training.records.profile import StepRange
from dongwu_jax.training.records.run_log import RunLog, lost_work
from dongwu_jax.training.trainer import Trainer


def saved_step(line: str) -> int | None:
    """The checkpoint that an event says is complete."""
    event = json.loads(line)
    return event["step"] if event["event"] == "checkpoint" else None


def stop_as_if_killed(folder: Path) -> None:
    """Take away what a stop after step 13 saved and said, which a kill would not have."""
    shutil.rmtree(folder / "checkpoints" / "13")
    lines = (folder / "events.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line).get("what") != "closing"]
    kept = [line for line in kept if json.loads(line)["event"] != "end"]
    kept = [line for line in kept if saved_step(line) != 13]
    assert json.loads(kept[-1])["step"] == 13  # the last save's pause, after its data
    (folder / "events.jsonl").write_text("\n".join(kept[:-2]) + "\n")


def test_a_killed_and_resumed_run(tmp_path):
    """Killed after step 13; checkpoints after 5, 10, ..."""
    sections = {
        "checkpoint": {"interval": 5, "keep_last": 5},
        "evaluation": {"interval": 10, "batches": 1},
        "data": {"split": "80,20,0"},
    }
    folder = tmp_path / "run"
    Trainer(run_config(tmp_path, **sections)).run(stop_after=13)
    stop_as_if_killed(folder)
    before = read_lines(folder / "metrics.jsonl")
    reported = 13
    lost = [line for line in before if line["step"] > 10]
    sections["optimizer"] = {"learning_rate": 5e-3}
    Trainer(run_config(tmp_path, **sections)).run()

    events = read_lines(folder / "events.jsonl")
    first, second = (event for event in events if event["event"] == "start")
    assert not first["resumed"]
    assert second["resumed"]
    assert (second["step"], second["previous_step"]) == (10, reported)
    assert second["lost_steps"] == reported - 10
    assert second["lost_seconds"] == pytest.approx(sum(line["step_seconds"] for line in lost))
    assert second["previous_time"] == before[-1]["time"]
    assert second["config"]["optimizer"]["learning_rate"] == 5e-3
    assert (events[-1]["event"], events[-1]["reason"]) == ("end", "finished")
    assert [e["step"] for e in events if e.get("what") == "evaluation"] == [10, 20]
    drawn = [
        (e["first_step"], e["last_step"], e["samples"]) for e in events if e["event"] == "data"
    ]
    assert drawn == [(0, 5, [80]), (5, 10, [80]), (10, 15, [80]), (15, 20, [80])]

    after = read_lines(folder / "metrics.jsonl")
    steps = [line["step"] for line in after if "loss" in line]
    assert steps == list(range(1, 21))  # the lines of steps done again were replaced
    times = [line["time"] for line in after]
    assert times == sorted(times)
    run = read_run_folder(folder)
    assert [session.lost_steps for session in run.sessions] == [reported - 10, 0]
    seconds = totals(find_intervals(run.sessions, run.metrics))
    assert sum(seconds.values()) == pytest.approx(events[-1]["time"] - first["began"])
    assert all(seconds[kind] > 0 for kind in ("steps", "lost", "startup", "compilation"))


def test_a_failure_is_told(tmp_path):
    trainer = Trainer(run_config(tmp_path))

    def fail(*_):
        raise OSError("no room")

    trainer.checkpoints.save = fail
    with pytest.raises(OSError, match="no room"):
        trainer.run()
    (*_, end) = read_lines(tmp_path / "run" / "events.jsonl")
    assert (end["event"], end["reason"], end["step"]) == ("end", "failed", 10)
    assert end["message"] == "OSError: no room"


def test_half_a_line_of_a_killed_process_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "pau')
    RunLog(path).event("straggler", step=3)
    assert json.loads(path.read_text().splitlines()[1])["step"] == 3


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "events.jsonl").mkdir()
    log = RunLog(tmp_path / "events.jsonl")
    log.event("start")
    log.event("end")
    assert caplog.text.count("cannot be written") == 1


def test_lost_work_of_lines_that_hold_several_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": s, "loss": 1.0, "step_seconds": 2.0, "time": 1000.0 + s} for s in (1, 10, 20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "lo')
    assert lost_work(path, 15) == {
        "previous_step": 20,
        "previous_time": 1020.0,
        "lost_steps": 5,
        "lost_seconds": 10.0,
    }
    assert lost_work(path, 20)["lost_steps"] == 0
    assert lost_work(tmp_path / "absent.jsonl", 0)["lost_steps"] == 0


def test_a_profile_on_a_cpu_leaves_a_trace_and_says_that_there_is_no_table(tmp_path, caplog):
    Trainer(run_config(tmp_path, training={"duration": 4}), profile=StepRange(2, 3)).run()
    folder = tmp_path / "run" / "profile"
    assert list(folder.glob("**/*.xplane.pb"))
    assert "no kernel of a GPU" in caplog.text
    assert not (folder / "kernels.json").exists()
    events = read_lines(tmp_path / "run" / "events.jsonl")
    (pause,) = (event for event in events if event.get("what") == "profile")
    assert pause["step"] == 3
