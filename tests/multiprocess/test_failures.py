"""What happens to real processes when one of them is killed, hangs, differs or does not come."""

import os
import re
import signal
import time

import pytest
from process_group import losses, start, train, write_run

from dongwu_jax import exit_codes
from dongwu_jax.training.faults.run_lock import lock_run

# Long enough never to end by itself.
LONG = {"duration": 100_000, "micro_batch_size": 1}


@pytest.fixture
def running(request):
    """Ends with the test whatever processes it leaves."""
    return lambda group: request.addfinalizer(group.kill) or group


@pytest.mark.parametrize(
    ("processes", "victim"), [(2, 1), pytest.param(4, 0, marks=pytest.mark.slow)]
)
def test_a_killed_process_ends_the_others_and_a_relaunch_resumes_exactly(
    processes, victim, tmp_path, running
):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for folder in (broken, whole):
        write_run(folder, mesh={"fsdp": processes}, training=LONG, checkpoint={"interval": 5})
    group = running(train(broken, processes, devices=processes))
    group.wait_until(lambda: (broken / "run/checkpoints/5").exists() and len(losses(broken)) > 7)

    group.processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    for rank in set(range(processes)) - {victim}:
        status = group.wait(rank, timeout=60)
        # JAX aborts when its coordinator dies, and may be faster than our exit.
        assert status == exit_codes.PEER_LOST or (victim == 0 and status == -signal.SIGABRT)
        assert f"process {victim} (" in group.output(rank)
        assert "is gone" in group.output(rank)
        assert "Traceback" not in group.output(rank)
    assert time.monotonic() - killed < 60

    train(broken, processes, "--stop-after", "3", devices=processes).succeed()
    resumed = losses(broken)
    train(whole, processes, "--stop-after", str(max(resumed)), devices=processes).succeed()
    assert resumed == losses(whole)


def test_a_hang_becomes_stacks_and_an_exit(tmp_path, running):
    write_run(tmp_path, mesh={"fsdp": 2}, training=LONG, guards={"hang_timeout_min_seconds": 3.0})
    group = running(train(tmp_path, 2, devices=2))
    group.wait_until(lambda: len(losses(tmp_path)) > 5)
    group.processes[1].send_signal(signal.SIGSTOP)
    assert group.wait(0, timeout=60) == exit_codes.HANG
    stacks = (tmp_path / "run" / "hang.process0.txt").read_text()
    for text in (group.output(0), " ".join(stacks.split())):
        assert "has not finished for" in text
        assert re.search(r"process 0 \(\S+\) has finished step \d+, step \d+ for \d+ s", text)
        assert re.search(r"process 1 \(\S+\) does not answer", text)
        assert "trainer.py" in text
    group.processes[1].send_signal(signal.SIGCONT)
    assert group.wait(1, timeout=60) != 0


def test_a_process_0_that_stands_still_is_named(tmp_path, running):
    write_run(tmp_path, mesh={"fsdp": 2}, training=LONG)  # the watchdog waits for 300 s
    group = running(train(tmp_path, 2, devices=2))
    group.wait_until(lambda: len(losses(tmp_path)) > 5)
    group.processes[0].send_signal(signal.SIGSTOP)
    assert group.wait(1, timeout=90) == exit_codes.PEER_LOST
    assert re.search(r"process 0 \(.*\) has not answered for (2[5-9]|3\d) s", group.output(1))


@pytest.mark.slow
def test_a_second_run_is_refused_in_all_its_processes(tmp_path, running):
    config = write_run(tmp_path, mesh={"fsdp": 2}, training=LONG)
    locks = lock_run(config, began=0.0)  # this process is the first run
    group = running(train(tmp_path, 2, devices=2))
    assert group.wait(0, timeout=180) == exit_codes.FAILED
    assert group.wait(1, timeout=60) == exit_codes.PEER_LOST
    for rank in range(2):
        assert f"another run is at work there, process {os.getpid()} on" in group.output(rank)
    assert not list(config.checkpoint.directory.glob("[0-9]*"))
    assert not (config.log_directory / "metrics.jsonl").exists()
    del locks


def test_processes_with_different_settings_all_end(tmp_path, running):
    write_run(tmp_path, mesh={"fsdp": 2}, training=LONG)
    config = ["--config", str(tmp_path / "run.yaml")]
    different = [*config, "optimizer.learning_rate=0.02", "data.prefetch=2"]
    group = running(start(tmp_path, [config, different], devices=2))
    for rank in range(2):
        assert group.wait(rank) == 1
        assert "optimizer.learning_rate: 0.02 on process 1, 0.01 on process 0" in group.output(rank)
        assert "data.prefetch: 2 on process 1, 4 on process 0" in group.output(rank)
        assert "Traceback" not in group.output(rank)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_process_that_fails_tells_the_others_why(tmp_path, running):
    write_run(tmp_path, mesh={"fsdp": 2}, training=LONG)
    config = ["--config", str(tmp_path / "run.yaml")]
    group = running(start(tmp_path, [config, ["--config", str(tmp_path / "none.yaml")]], devices=2))
    assert group.wait(1) == 1
    assert group.wait(0, timeout=60) == exit_codes.PEER_LOST
    for rank in range(2):
        assert "none.yaml: cannot be read" in group.output(rank)
    assert "process 1 (" in group.output(0)
