"""Drives workers through many damaged inputs: a worker that hangs or dies is replaced."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).parent / "worker.py"
_ROOT = Path(__file__).resolve().parents[2]
_INPUT_SECONDS = 120.0
_START_SECONDS = 300.0

Job = tuple[str, int, int]
"""A reader, the number of its first input, and how many inputs."""


@dataclass
class Summary:
    """What became of the inputs of one reader."""

    reader: str
    seed: int
    inputs: int = 0
    read: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def count(self, record: dict[str, Any]) -> None:
        """Add one input."""
        self.inputs += 1
        self.slowest_seconds = max(self.slowest_seconds, record.get("seconds", 0.0))
        if record["outcome"] == "failed":
            self.failures.append({name: record[name] for name in ("index", "mutation", "why")})
        elif record["outcome"] == "refused":
            self.refused += 1
        else:
            self.read += 1


def fuzz(
    jobs: Sequence[Job], seed: int, seeds: Path, scratch: Path, cheap: bool = False
) -> dict[str, Summary]:
    """Give readers damaged inputs; the same seed damages them in the same way.

    Args:
        seeds: of `seeds.build_seeds`.
        scratch: where the inputs are put.
        cheap: without what takes seconds, such as files of gigabytes.

    Raises:
        RuntimeError: a worker fails by itself.
    """
    summaries = {reader: Summary(reader, seed) for reader, _, _ in jobs}
    left = [(reader, first + n) for reader, first, count in jobs for n in range(count)]
    while left:
        for record in _run_worker(left, seed, seeds, scratch, cheap):
            summaries[record["reader"]].count(record)
            left = left[1:]
    return summaries


def _run_worker(
    inputs: list[tuple[str, int]], seed: int, seeds: Path, scratch: Path, cheap: bool
) -> Iterator[dict[str, Any]]:
    """The records of a worker; the last one is ours if it did not end well."""
    scratch.mkdir(parents=True, exist_ok=True)
    words = [json.dumps(_jobs(inputs)), str(seed), str(seeds), str(scratch), str(cheap)]
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"}
    with (scratch / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(_WORKER), *words],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_forward, args=(process, lines), daemon=True).start()
    seconds = _START_SECONDS
    for reader, index in inputs:
        try:
            line = lines.get(timeout=seconds)
        except queue.Empty:
            process.kill()
            process.wait()
            yield _failed(reader, index, f"hung for {seconds:.0f} seconds")
            return
        if not line:
            last = (scratch / "stderr").read_text(errors="replace").strip()[-1500:]
            if process.wait() == 1:
                raise RuntimeError(f"the worker fails by itself, at {reader} {index}:\n{last}")
            yield _failed(reader, index, f"the process ended with {process.returncode}: {last}")
            return
        seconds = _INPUT_SECONDS
        yield json.loads(line)
    process.wait()


def _jobs(inputs: list[tuple[str, int]]) -> list[Job]:
    """Consecutive numbers of one reader together."""
    jobs: list[Job] = []
    for reader, index in inputs:
        if jobs and jobs[-1][0] == reader:
            jobs[-1] = (reader, jobs[-1][1], jobs[-1][2] + 1)
        else:
            jobs.append((reader, index, 1))
    return jobs


def _forward(process: subprocess.Popen[bytes], lines: "queue.SimpleQueue[bytes]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(b"")


def _failed(reader: str, index: int, why: str) -> dict[str, Any]:
    record = {"reader": reader, "index": index, "outcome": "failed"}
    return record | {"why": why, "mutation": "see the seed"}
