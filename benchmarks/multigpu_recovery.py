"""A run of one process a GPU, one of which is killed; then the same command again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dongwu_jax.config import dump_config, parse_config
from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter
from dongwu_jax.errors import UserError

_LAUNCHER = Path(__file__).parents[1] / "tools" / "launch" / "host_processes.sh"
_LENGTH, _VOCABULARY = 64, 512
_PATIENCE_SECONDS = 240


def kill_and_recover(
    folder: Path, count: int, environment: Mapping[str, str], steps: int
) -> dict[str, Any]:
    """Kill a process of the run half-way, start the run again, and let it end.

    Args:
        folder: for data and run.
        count: processes, one a GPU.
        steps: of the run, which saves after every third of them.

    Returns:
        Seconds from the kill until the launcher has ended, its status, seconds from the second
        start until the first new step, the steps that were done twice.
    """
    _write_data(folder)
    _write_run(folder, count, steps)
    metrics, saved_every = folder / "run" / "metrics.jsonl", steps // 3
    with _launched(folder, count, environment) as first:
        _wait_until(lambda: _last_step(metrics) >= steps // 2, first, folder)
        killed = time.perf_counter()
        os.kill(_processes_of(first.pid)[-1], signal.SIGKILL)
        status = first.wait(_PATIENCE_SECONDS)
        ended = time.perf_counter() - killed
    reached, again = _last_step(metrics), time.perf_counter()
    with _launched(folder, count, environment) as second:
        _wait_until(lambda: "resumed at step" in _log(folder), second, folder)
        size = len(metrics.read_text().splitlines())
        _wait_until(lambda: len(metrics.read_text().splitlines()) != size, second, folder)
        going = time.perf_counter() - again
        second_status = second.wait(_PATIENCE_SECONDS)
    return {
        "processes": count,
        "killed_after_step": reached,
        "launcher_ended_seconds": round(ended, 1),
        "launcher_status": status,
        "training_again_seconds": round(going, 1),
        "steps_done_twice_at_most": reached % saved_every,
        "second_status": second_status,
        "last_step": _last_step(metrics),
    }


def _write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with IndexedDatasetWriter(folder / "random", np.dtype(np.uint16)) as writer:
        for _ in range(64):
            size = 2**14
            writer.add_document(rng.integers(_VOCABULARY, size=size, dtype=np.uint16), [size])


def _write_run(folder: Path, count: int, steps: int) -> None:
    sections = {
        "model": {
            "vocab_size": _VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_layers": 4,
            "num_heads": 4,
            "max_position_embeddings": _LENGTH,
        },
        "data": {
            "blend": str(folder / "random"),
            "sequence_length": _LENGTH,
            "split": "100,0,0",
        },
        "mesh": {"fsdp": count},
        "training": {"global_batch_size": 8, "micro_batch_size": 1, "duration": steps},
        "checkpoint": {"directory": str(folder / "run" / "checkpoints"), "interval": steps // 3},
        "logging": {"directory": str(folder / "run"), "interval": 1},
    }
    (folder / "run.yaml").write_text(dump_config(parse_config(sections, "recovery")))


@contextmanager
def _launched(
    folder: Path, count: int, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher of the run; it and its processes are gone afterwards."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    launcher = [str(_LAUNCHER), "--coordinator", f"localhost:{port}", "--num-processes", str(count)]
    launcher += ["--first-process", "0", "--local-processes", str(count)]
    launcher += ["--log-directory", str(folder / "logs"), "--"]
    train = [sys.executable, "-m", "dongwu_jax.train", "--config", str(folder / "run.yaml")]
    process = subprocess.Popen(
        [*launcher, *train],
        env=os.environ | dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _wait_until(
    reached: Callable[[], bool], launcher: subprocess.Popen[bytes], folder: Path
) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not reached():
        if launcher.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"the run ended or stands still:\n{_log(folder)[-2000:]}")
        time.sleep(0.05)


def _last_step(metrics: Path) -> int:
    if not metrics.exists():
        return 0
    lines = metrics.read_text().splitlines()
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def _log(folder: Path) -> str:
    """What the first process has printed in both runs."""
    return (folder / "logs" / "process-0000.log").read_text()


def _processes_of(launcher: int) -> list[int]:
    """The training processes below a launcher, by what they were started with."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            group = _ancestors(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"dongwu_jax.train" in words and b"bash" not in words[0] and launcher in group:
            found.append(int(folder.name))
    if not found:
        raise UserError("no training process to kill")
    return sorted(found)


def _ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        parent = (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1]
        process = int(parent)
        found.append(process)
    return found
