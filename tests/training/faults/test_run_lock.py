"""Two runs in one folder: the second one waits for a while and is refused."""

import errno
import fcntl
import socket
import subprocess
import sys

import pytest
from runs import run_config

from dongwu_jax.config import dump_config
from dongwu_jax.errors import UserError
from dongwu_jax.training.faults import run_lock
from dongwu_jax.training.faults.run_lock import LOCK_FILE, lock_run
from dongwu_jax.training.trainer import Trainer

HOLDER = """
import sys
from dongwu_jax.config import load_config
from dongwu_jax.training.faults.run_lock import lock_run
locks = lock_run(load_config(sys.argv[1], []), began=0.0)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def config(tmp_path):
    return run_config(tmp_path)


@pytest.fixture
def holder(config, tmp_path):
    """A process that has the locks of the run."""
    (tmp_path / "run.yaml").write_text(dump_config(config))
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run.yaml")]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_a_killed_one_is_in_nobodys_way(
    config, holder, monkeypatch, tmp_path
):
    monkeypatch.setattr(run_lock, "_PATIENCE_SECONDS", 0.0)
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(UserError) as refused:
        Trainer(config)
    whose = f"process {holder.pid} on {socket.gethostname()}, begun 1970-01-01T00:00:00+00:00"
    assert f"another run is at work there, {whose}" in str(refused.value)
    assert f"checkpoint.directory={config.checkpoint.directory}:" in str(refused.value)
    # Other checkpoints, but the same metrics.
    elsewhere = {"directory": str(tmp_path / "other")}
    logs = {"directory": str(config.log_directory)}
    with pytest.raises(UserError, match=f"logging.directory={config.log_directory}: another run"):
        lock_run(run_config(tmp_path, checkpoint=elsewhere, logging=logs), began=0.0)
    assert sorted((tmp_path / "run").rglob("*")) == before
    holder.kill()
    holder.wait()
    assert len(lock_run(config, began=0.0)) == 2


def test_a_run_that_lingers_is_waited_for(config, holder, monkeypatch, caplog):
    def wait(seconds):
        holder.stdin.close()  # it ends
        holder.wait()

    monkeypatch.setattr(run_lock.time, "sleep", wait)
    assert len(lock_run(config, began=0.0)) == 2
    assert f"process {holder.pid} on" in caplog.text
    assert caplog.text.count("waiting up to 60 s for it to end") == 1


def test_a_file_system_without_locks_is_said(config, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    assert lock_run(config, began=0.0) == []
    assert "cannot be locked: [Errno 37] No locks available" in caplog.text


def test_a_lock_that_nobody_signed(config, monkeypatch):
    (config.checkpoint.directory).mkdir(parents=True)
    (config.checkpoint.directory / LOCK_FILE).write_bytes(b"\xff")
    monkeypatch.setattr(run_lock, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(run_lock, "_taken", lambda lock: False)
    with pytest.raises(UserError, match="which has not told its name"):
        lock_run(config, began=0.0)
