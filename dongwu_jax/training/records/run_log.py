"""What happened to a run beside its steps: events.jsonl, one JSON object a line, append only.

Every line has `time` (seconds since the epoch, UTC), `utc` (the same for people) and `event`:

    start: began, step, resumed, steps, config, parameters, versions, devices, blend, and what the
        start before had done in vain (`lost_work`)
    compiled: seconds
    pause: what (evaluation, checkpoint, rollback, weight check, profile, closing), step, seconds
    data: first_step, last_step, samples drawn from each dataset of the blend between them
    stop: reason (a signal or a time limit), step; before the `end`
    bad_step: step, reason, numbers, computed_again, action, in_a_row
    rollback: step, to
    step_times: step, seconds: of a step that each process spends on its own, by host/process
    straggler: step, process, host, own_seconds, median_own_seconds, step_seconds
    checkpoint: step, which is complete
    checkpoint_failed: message, newest
    damaged_checkpoint: step, problems, set_aside
    end: reason (finished, stopped, interrupted, failed), step, message

A process that is killed leaves no `end`. `dongwu_jax.report` makes a page of it.
"""

import contextlib
import importlib.metadata
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import orjson

from dongwu_jax.config import RunConfig
from dongwu_jax.training.records.appended_file import AppendedFile
from dongwu_jax.training.records.run_records import number, read_json_lines

_LONGEST_MESSAGE = 2000


class RunLog:
    """Appends events to a file; what cannot be written waits for room, and the run goes on."""

    def __init__(self, path: Path | None):
        """Nothing is written before the first event.

        Args:
            path: of the file; None: every event is dropped, as in all processes but the first.
        """
        self._path, self._begun = path, False
        self._lock = threading.Lock()  # checkpoints are completed in a thread of their own
        self._file = AppendedFile(path) if path else None

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event; `fields` must be JSON-able."""
        if self._path is None or self._file is None:
            return
        now = datetime.now(UTC)
        head = {"time": now.timestamp(), "utc": now.isoformat(timespec="seconds"), "event": kind}
        line = orjson.dumps(head | fields, default=str) + b"\n"
        with self._lock:
            if not self._begun and _ends_within_a_line(self._path):
                line = b"\n" + line
            self._begun = True
            self._file.append(line)

    def close(self) -> None:
        """Write what waits, if there is room; say what is lost."""
        if self._file is not None:
            with self._lock:
                self._file.close()

    @contextmanager
    def pause(self, what: str, step: int) -> Iterator[None]:
        """Record how long something took that is no step; nothing if it fails."""
        started = time.perf_counter()
        yield
        self.event("pause", what=what, step=step, seconds=time.perf_counter() - started)

    @contextmanager
    def session(self, step: Callable[[], int], last: int) -> Iterator[None]:
        """Record how the steps end.

        Args:
            step: gives the last step that was done.
            last: the last step of the whole run.
        """
        try:
            yield
        except BaseException as error:
            reason = "failed" if isinstance(error, Exception) else "interrupted"
            message = f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE]
            self.event("end", reason=reason, step=step(), message=message)
            self.close()
            raise
        self.event("end", reason="finished" if step() == last else "stopped", step=step())
        self.close()


def open_run_log(config: RunConfig) -> RunLog:
    """The log beside the run's metrics; of the first process only."""
    first = jax.process_index() == 0
    return RunLog(config.log_directory / "events.jsonl" if first else None)


def _ends_within_a_line(path: Path) -> bool:
    """Whether a killed process left half a line."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # there is none, or it is empty
        return False


def environment() -> dict[str, Any]:
    """What a start ran on: versions of the software, and the devices."""
    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version(), **_package_versions()},
        "devices": {
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
            "host": socket.gethostname(),
        },
    }


def _package_versions() -> dict[str, str]:
    """Of what is installed; a source tree that is run as it lies is not."""
    versions = {}
    for name in ("dongwu_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def lost_work(metrics: Path, first_step: int) -> dict[str, Any]:
    """What the start before this one reported, and what of it is going to be done again.

    Call before the lines of these steps are dropped.

    Args:
        metrics: metrics.jsonl of the run.
        first_step: the step from which this start goes on.

    Returns:
        previous_step, previous_time: of the last reported step; time is None in old files.
        lost_steps, lost_seconds: reported steps after `first_step`, and what they took.

    Raises:
        UserError: the file cannot be read.
    """
    previous_step, previous_time, lost_seconds = 0, None, 0.0
    for record in read_json_lines(metrics):
        step = record.get("step")
        if "loss" not in record or not isinstance(step, int):
            continue
        if step > first_step:
            steps = step - max(previous_step, first_step)
            lost_seconds += max(steps, 0) * number(record.get("step_seconds"), 0.0)
        previous_step, previous_time = step, record.get("time")
    return {
        "previous_step": previous_step,
        "previous_time": previous_time,
        "lost_steps": max(previous_step - first_step, 0),
        "lost_seconds": lost_seconds,
    }
