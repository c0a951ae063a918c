"""Where the time went, against sums done by hand."""

import itertools

import numpy as np
import pytest
from run_material import Clock, killed_twice

from dongwu_jax.report.goodput import KINDS, find_intervals, goodput, timeline, totals
from dongwu_jax.report.run_folder import read_run_folder


def measure(clock: Clock):
    run = read_run_folder(clock.write())
    return run, find_intervals(run.sessions, run.metrics)


def test_a_run_killed_twice(tmp_path):
    run, intervals = measure(killed_twice(tmp_path))
    expected = {
        "steps": 100,  # each counts once
        "lost": 10 + 15,  # 21 to 30, 41 to 55
        "startup": 10 + 8 + 7,
        "compilation": 20 + 5 + 5,
        "evaluation": 5 * 4,
        "checkpoint": 5 * 2,
        "other": 1,  # closing
        "down": 100 + 50,
    }
    assert totals(intervals) == pytest.approx(expected)
    whole = sum(expected.values())
    assert intervals[-1].end - intervals[0].start == pytest.approx(whole)
    assert goodput(totals(intervals)) == pytest.approx(100 / whole)
    assert goodput(totals(intervals), while_up=True) == pytest.approx(100 / (whole - 150))
    assert [session.lost_steps for session in run.sessions] == [10, 15, 0]
    assert [session.last_step for session in run.sessions] == [30, 55, 100]


def test_intervals_leave_no_gap_and_do_not_overlap(tmp_path):
    _, intervals = measure(killed_twice(tmp_path))
    for one, following in itertools.pairwise(intervals):
        assert one.end == following.start


@pytest.mark.parametrize("columns", [1, 7, 320])
def test_the_timeline_is_the_same_time(tmp_path, columns):
    _, intervals = measure(killed_twice(tmp_path))
    shares = timeline(intervals, columns)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    whole = intervals[-1].end - intervals[0].start
    by_kind = dict(zip(KINDS, shares.sum(axis=0) * whole / columns, strict=True))
    assert by_kind == pytest.approx(totals(intervals))


def test_a_start_from_an_older_checkpoint_takes_steps_from_two_starts(tmp_path):
    """The checkpoint of step 40 is damaged: steps 21 to 40 of the second start are lost, too."""
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 20)
    clock.pause("checkpoint", 20, seconds=1)
    clock.train(21, 25)
    clock.start(20, loading=1, compiling=1)
    clock.train(21, 40)
    clock.pause("checkpoint", 40, seconds=1)
    clock.train(41, 45)
    clock.start(20, loading=1, compiling=1)
    clock.train(21, 60)
    run, intervals = measure(clock)
    assert [session.lost_steps for session in run.sessions] == [5, 25, 0]
    seconds = totals(intervals)
    assert (seconds["steps"], seconds["lost"]) == pytest.approx((60, 30))


def test_steps_thrown_away_by_a_rollback(tmp_path):
    """Step 30 is bad: back to the checkpoint of 20, and on with step 31 as if they never were."""
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 20)
    clock.pause("checkpoint", 20, seconds=2)
    clock.train(21, 29)
    clock.now += 1  # the bad step
    clock.pause("rollback", 30, seconds=3)
    clock.event("rollback", step=30, to=20)
    clock.train(31, 40)
    run, intervals = measure(clock)
    seconds = totals(intervals)
    assert (seconds["steps"], seconds["lost"]) == pytest.approx((30, 10))
    assert (seconds["checkpoint"], seconds["other"]) == pytest.approx((2, 3))
    assert run.sessions[0].lost_steps == 10


def test_steps_lost_in_several_ways_count_once(tmp_path):
    """Back from 30 and from 32 to 20, then killed after 40 and resumed from 20."""
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    clock.train(1, 30)
    clock.event("rollback", step=30, to=20)
    clock.train(31, 32)
    clock.event("rollback", step=32, to=20)
    clock.train(33, 40)
    clock.start(20, loading=1, compiling=1)
    clock.train(21, 50)
    run, intervals = measure(clock)
    assert [session.lost_steps for session in run.sessions] == [20, 0]
    seconds = totals(intervals)
    assert (seconds["steps"], seconds["lost"]) == pytest.approx((50, 20))


def test_lines_of_several_steps_are_cut_at_the_step(tmp_path):
    """Reported every 10 steps, a checkpoint at 25: 26 to 30 are lost."""
    clock = Clock(tmp_path)
    clock.start(0, loading=0, compiling=5)
    for step in (10, 20):
        clock.now += 10
        clock.lines.append({"step": step, "time": clock.now, "loss": 2.0, "step_seconds": 1.0})
    clock.now += 10
    clock.lines.append({"step": 30, "time": clock.now, "loss": 2.0, "step_seconds": 1.0})
    clock.start(25, loading=0, compiling=5)
    clock.now += 5
    clock.lines.append({"step": 30, "time": clock.now, "loss": 2.0, "step_seconds": 1.0})
    _, intervals = measure(clock)
    seconds = totals(intervals)
    assert (seconds["steps"], seconds["lost"]) == pytest.approx((30, 5))


def test_a_start_that_died_before_its_first_step(tmp_path):
    clock = Clock(tmp_path)
    clock.start(0, loading=3, compiling=4)
    clock.events.pop()  # killed while compiling
    clock.now += 20
    clock.start(0, loading=3, compiling=4)
    clock.train(1, 10)
    run, intervals = measure(clock)
    assert totals(intervals)["steps"] == pytest.approx(10)
    assert totals(intervals, 0)["startup"] == pytest.approx(3)
    assert totals(intervals)["down"] == pytest.approx(4 + 20)
    assert [session.lost_steps for session in run.sessions] == [0, 0]


def test_no_events_no_goodput(tmp_path):
    clock = Clock(tmp_path)
    clock.train(1, 10)
    clock.write()
    (tmp_path / "events.jsonl").unlink()
    run = read_run_folder(tmp_path)
    assert goodput(totals(find_intervals(run.sessions, run.metrics))) is None
