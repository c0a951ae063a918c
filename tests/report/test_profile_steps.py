"""--profile-steps: what is traced, and what is refused."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from dongwu_jax.errors import UserError
from dongwu_jax.training.profile import StepRange, profiled


@pytest.mark.parametrize("text", ["10", "0:3", "5:4", "a:b", "1:2:3", "-1:3", ""])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(UserError, match="write FIRST:LAST"):
        StepRange.parse(text)


def test_a_trace_is_kept_short():
    assert StepRange.parse("1:100").count == 100
    with pytest.raises(UserError, match="are 101 steps"):
        StepRange.parse("1:101")


@pytest.fixture
def profiler_calls(monkeypatch):
    """Which steps had begun when a trace was started and stopped."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    monkeypatch.setattr("dongwu_jax.training.profile._write_table", lambda *_: None)
    return calls


def run_steps(calls: list, first: int, last: int, steps: StepRange, folder) -> None:
    def train_step(number):
        calls.append(number)
        return number, jnp.zeros(())

    step = profiled(train_step, first, steps, folder, contextlib.nullcontext())
    for number in range(first, last + 1):
        assert step(number)[0] == number


def test_first_and_last_are_included(profiler_calls, tmp_path):
    run_steps(profiler_calls, 4, 8, StepRange(5, 7), tmp_path)
    assert profiler_calls == [4, "start", 5, 6, 7, "stop", 8]


def test_steps_that_are_past_are_said(profiler_calls, tmp_path, caplog):
    run_steps(profiler_calls, 6, 8, StepRange(5, 7), tmp_path)
    assert profiler_calls == [6, 7, 8]
    assert "begins with step 6, so nothing is profiled" in caplog.text
