"""When a run counts as hung, and what happens then."""

import subprocess
import sys
import threading

import pytest
from runs import run_config

from dongwu_jax import exit_codes
from dongwu_jax.config import dump_config
from dongwu_jax.config.faults import GuardsConfig
from dongwu_jax.training.faults import watchdog
from dongwu_jax.training.faults.watchdog import Watchdog

CLOCK = """
import sys, threading
from pathlib import Path
from types import SimpleNamespace
from time import sleep
from dongwu_jax.training.faults import watchdog
now, looked, never = [0.0], threading.Semaphore(0), threading.Event()
def monotonic():
    if threading.current_thread().name == "watchdog":
        looked.release()
    return now[0]
watchdog.time = SimpleNamespace(monotonic=monotonic, sleep=sleep)
watchdog._SECONDS_FOR_OTHERS = 0.2
"""

SCRIPT = """
from dongwu_jax.config.faults import GuardsConfig
guards = GuardsConfig(
    hang_timeout_factor=2, hang_timeout_min_seconds=0.3, hang_timeout_pause_seconds=0.6
)
def pass_by(seconds):
    now[0] += seconds
    while looked.acquire(blocking=False):
        pass
    with dog._changed:
        dog._changed.notify()
    looked.acquire()  # when it barks now, it lets nobody go on
def hang():
    {hang}
with watchdog.Watchdog(guards, Path(sys.argv[1]), 3) as dog:
    for step in range(5):
        now[0] += 0.01
        dog.step_finished(step)
    {what}
print("not stopped")
"""
ENDLESS = "now[0] += 10; never.wait()"


def outcome(folder, hang=ENDLESS, what="hang()"):
    """How a process ends in which time passes when told to: no wait for it can be too short."""
    script = CLOCK + SCRIPT.format(hang=hang, what=what)
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
    assert outcome(tmp_path, what="pass_by(0.45)").returncode == exit_codes.HANG
    harmless = "with dog.pause('saving'): pass_by(0.45)"
    assert outcome(tmp_path, what=harmless).returncode == 0
    ended = outcome(tmp_path, what="with dog.pause('saving'): hang()")
    assert ended.returncode == exit_codes.HANG
    assert "saving has not finished" in ended.stderr


LOADING = """
from dongwu_jax.train import main
from dongwu_jax.training import run_inputs
def hanging_disk(*_, **__):
    now[0] += 10
    never.wait()
run_inputs.build_datasets = hanging_disk
main(["--config", sys.argv[1], "guards.hang_timeout_pause_seconds=1"])
"""


def test_a_hang_while_the_data_is_opened_ends_the_process_too(tmp_path):
    (tmp_path / "run.yaml").write_text(dump_config(run_config(tmp_path)))
    ended = subprocess.run(
        [sys.executable, "-c", CLOCK + LOADING, str(tmp_path / "run.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == exit_codes.HANG
    assert "the start of the run has not finished" in ended.stderr
    assert "in hanging_disk" in ended.stderr
    assert "in hanging_disk" in (tmp_path / "run" / "hang.process0.txt").read_text()


def test_a_hang_that_holds_the_interpreter_ends_too(tmp_path):
    soon = "watchdog._SECONDS_UNTIL_FAULTHANDLER = 0.5; dog.step_finished(5)"
    ended = outcome(tmp_path, hang=f"{soon}; sum(range(10**12))")  # one call in C
    assert ended.returncode not in (0, exit_codes.HANG)
    assert "Timeout (0:00:00.8" in ended.stderr  # the step's limit, and the 0.5 s
    assert "in hang" in ended.stderr


def watching():
    return {thread for thread in threading.enumerate() if thread.name == "watchdog"}


def test_the_end_of_a_run_ends_the_watch(clock, tmp_path):
    assert outcome(tmp_path, what="pass").returncode == 0
    before = watching()
    with Watchdog(GuardsConfig(), tmp_path, 0):
        (thread,) = watching() - before
    clock(1e6)
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_0_turns_it_off(monkeypatch, tmp_path):
    armed, before = [], watching()
    monkeypatch.setattr(
        watchdog.faulthandler, "dump_traceback_later", lambda *_, **__: armed.append(1)
    )
    guards = GuardsConfig(hang_timeout_factor=0, hang_timeout_pause_seconds=0.1)
    with Watchdog(guards, tmp_path, 0) as dog:
        dog.step_finished(1)
        assert watching() <= before
    assert not armed
