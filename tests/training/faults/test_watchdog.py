"""When a run counts as hung, and what happens then."""

import subprocess
import sys
import time

import pytest
from runs import run_config

from dongwu_jax import exit_codes
from dongwu_jax.config import dump_config
from dongwu_jax.config.faults import GuardsConfig
from dongwu_jax.training.faults import watchdog
from dongwu_jax.training.faults.watchdog import Watchdog

SCRIPT = """
import sys, time
from pathlib import Path
from dongwu_jax.config.faults import GuardsConfig
from dongwu_jax.training.faults import watchdog
watchdog._SECONDS_FOR_OTHERS = 0.2
watchdog._SECONDS_UNTIL_FAULTHANDLER = 0.5
guards = GuardsConfig(
    hang_timeout_factor=2, hang_timeout_min_seconds=0.3, hang_timeout_pause_seconds=2
)
def hang():
    {hang}
with watchdog.Watchdog(guards, Path(sys.argv[1]), 3) as dog:
    for step in range({steps}):
        dog.step_finished(step)
        time.sleep(0.01)
    {what}
print("not stopped")
"""


def outcome(folder, hang="time.sleep(30)", steps=5, what="hang()"):
    script = SCRIPT.format(hang=hang, steps=steps, what=what)
    return subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when told to."""
    now = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds

    return pass_by


def test_limit_follows_the_median_step(clock, tmp_path):
    guards = GuardsConfig(hang_timeout_factor=10, hang_timeout_min_seconds=25)
    dog = Watchdog(guards, tmp_path, 0)
    assert dog.step_limit_seconds == 3600  # the first step compiles
    for step, seconds in enumerate([100, 3, 3, 90, 3]):
        clock(seconds)
        dog.step_finished(step)
    assert dog.step_limit_seconds == 30
    for step in range(5, 20):
        clock(1)
        dog.step_finished(step)
    assert dog.step_limit_seconds == 25


def test_no_limit_is_longer_than_the_clocks_take(clock, tmp_path):
    dog = Watchdog(GuardsConfig(hang_timeout_factor=1e300), tmp_path, 0)
    for step in range(2):
        clock(100)
        dog.step_finished(step)
    assert dog.step_limit_seconds == 864_000
    for name in ("hang_timeout_pause_seconds", "hang_timeout_min_seconds"):
        with pytest.raises(ValueError, match=name):
            GuardsConfig(**{name: 1e10})


def test_pauses_do_not_count_as_steps(clock, tmp_path):
    dog = Watchdog(GuardsConfig(hang_timeout_min_seconds=1), tmp_path, 0)
    for step in range(1, 9):
        clock(2)
        dog.step_finished(step)
        with dog.pause("an evaluation"):
            clock(500)
    assert dog.step_limit_seconds == 3600
    clock(2)
    dog.step_finished(9)
    clock(2)
    dog.step_finished(10)
    assert dog.step_limit_seconds == 20


def test_a_hang_ends_the_process_with_its_stacks(tmp_path):
    ended = outcome(tmp_path / "logs")
    assert ended.returncode == exit_codes.HANG
    written = (tmp_path / "logs" / "hang.process3.txt").read_text()
    for text in (ended.stderr, written):
        assert "step 5 has not finished for" in text
        assert "in hang" in text
    assert "not stopped" not in ended.stdout


def test_a_pause_has_its_own_limit(tmp_path):
    harmless = "with dog.pause('saving'): time.sleep(0.45)"
    assert outcome(tmp_path, what=harmless).returncode == 0
    ended = outcome(tmp_path, what="with dog.pause('saving'): hang()")
    assert ended.returncode == exit_codes.HANG
    assert "saving has not finished" in ended.stderr


LOADING = """
import sys, time
from dongwu_jax.train import main
from dongwu_jax.training import run_inputs
from dongwu_jax.training.faults import watchdog
watchdog._SECONDS_FOR_OTHERS = 0.2
def hanging_disk(*_, **__):
    time.sleep(60)
run_inputs.build_datasets = hanging_disk
main(["--config", sys.argv[1], "guards.hang_timeout_pause_seconds=4"])
"""


def test_a_hang_while_the_data_is_opened_ends_the_process_too(tmp_path):
    (tmp_path / "run.yaml").write_text(dump_config(run_config(tmp_path)))
    ended = subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path / "run.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == exit_codes.HANG
    assert "the start of the run has not finished" in ended.stderr
    assert "in hanging_disk" in ended.stderr
    assert "in hanging_disk" in (tmp_path / "run" / "hang.process0.txt").read_text()


def test_a_hang_that_holds_the_interpreter_ends_too(tmp_path):
    started = time.monotonic()
    ended = outcome(tmp_path, hang="sum(range(10**12))")  # one call in C
    assert ended.returncode != 0
    assert "in hang" in ended.stderr
    assert time.monotonic() - started < 30


def test_the_end_of_a_run_ends_the_watch_and_0_turns_it_off(tmp_path):
    assert outcome(tmp_path, what="pass").returncode == 0
    guards = GuardsConfig(hang_timeout_factor=0, hang_timeout_pause_seconds=0.1)
    with Watchdog(guards, tmp_path, 0):
        time.sleep(0.5)
