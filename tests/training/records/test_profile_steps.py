"""--profile-steps: what is traced, and what is refused."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from runs import run_config

from dongwu_jax.errors import UserError
from dongwu_jax.training.records.profile import Profile, StepRange
from dongwu_jax.training.trainer import Trainer


@pytest.mark.parametrize("text", ["10", "0:3", "5:4", "a:b", "1:2:3", "-1:3", ""])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(UserError, match="write FIRST:LAST"):
        StepRange.parse(text)


def test_a_trace_is_kept_short():
    assert StepRange.parse("1:100").count == 100
    with pytest.raises(UserError, match="are 101 steps"):
        StepRange.parse("1:101")


@pytest.fixture
def calls(monkeypatch):
    """Which steps had begun when a trace was started and stopped, and what was written."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    monkeypatch.setattr(
        "dongwu_jax.training.records.profile._write_table",
        lambda folder, steps, count: calls.append((steps, count)),
    )
    return calls


def run_steps(calls, numbers, steps, folder, last=None):
    def train_step(number):
        calls.append(number)
        return number, jnp.zeros(())

    profile = Profile(steps, folder, lambda step: contextlib.nullcontext())
    profile.begin(numbers[0] - 1, last or numbers[-1])
    for number in numbers:
        assert profile.run(number, train_step, number)[0] == number
    profile.end()


def test_first_and_last_are_included(calls, tmp_path):
    run_steps(calls, range(4, 9), StepRange(5, 7), tmp_path)
    assert calls == [4, "start", 5, 6, 7, "stop", (StepRange(5, 7), 3), 8]


def test_bad_steps_that_are_run_again_do_not_shift_the_range(calls, tmp_path):
    # Step 3 is bad: step 4 has begun when that is seen; then 6.
    numbers = [3, 4, 3, 4, 5, 6, 7, 6, 7, 8]
    run_steps(calls, numbers, StepRange(4, 8), tmp_path)
    assert calls == [3, "start", *numbers[1:], "stop", (StepRange(4, 8), 9)]


@pytest.mark.parametrize("again", [[5], [5, 6]])
def test_a_bad_last_step_is_traced_once(calls, again, tmp_path):
    run_steps(calls, [4, 5, *again, 6], StepRange(5, 5), tmp_path)
    assert calls == [4, "start", 5, "stop", (StepRange(5, 5), 1), *again, 6]


def test_steps_that_are_past_are_said(calls, tmp_path, caplog):
    run_steps(calls, range(6, 9), StepRange(5, 7), tmp_path)
    assert calls == [6, 7, 8]
    assert "begins with step 6, so nothing is profiled" in caplog.text


def test_a_run_that_ends_within_the_range_leaves_what_there_is(calls, tmp_path, caplog):
    run_steps(calls, range(1, 13), StepRange(10, 13), tmp_path)
    assert calls[9:] == ["start", 10, 11, 12, "stop", (StepRange(10, 12), 3)]
    assert "10:13: this start ends with step 12, and so does the trace" in caplog.text
    caplog.clear()
    run_steps(calls, range(1, 12), StepRange(10, 13), tmp_path, last=20)  # told to stop
    assert calls[-2:] == ["stop", (StepRange(10, 11), 2)]
    assert "the steps ended with step 11, and so does the trace" in caplog.text


def test_steps_that_never_come_are_refused_or_said(calls, tmp_path, caplog):
    with pytest.raises(UserError, match=r"--profile-steps 21:22: the run ends with step 20 \(trai"):
        Trainer(run_config(tmp_path), profile=StepRange(21, 22))
    run_steps(calls, range(1, 4), StepRange(5, 6), tmp_path)  # --stop-after 3
    assert calls == [1, 2, 3]
    assert "5:6: this start ends with step 3: nothing is profiled" in caplog.text


def test_a_trace_that_cannot_be_written_does_not_end_the_run(calls, tmp_path, monkeypatch, caplog):
    def full():
        raise RuntimeError("no room")

    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    run_steps(calls, range(1, 4), StepRange(1, 2), tmp_path)
    assert calls == ["start", 1, 2, 3]
    assert "the profile could not be written: no room" in caplog.text
