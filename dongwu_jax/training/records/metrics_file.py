"""metrics.jsonl: the metrics of a run's steps, one JSON object a line."""

import json
import logging
import os
import shutil
import time
from pathlib import Path

from dongwu_jax.errors import UserError
from dongwu_jax.training.records.appended_file import AppendedFile

logger = logging.getLogger(__name__)


class MetricsFile:
    """One JSON object a step; a resumed run replaces what it is going to do again.

    `time` is in seconds since the epoch.
    """

    def __init__(self, path: Path, start_step: int, resumed: bool):
        """Make the file ready for the step after `start_step`.

        Raises:
            OSError: it cannot be written.
            UserError: it is no file of metrics.
        """
        if path.exists() and not resumed:
            _set_aside(path)
        elif path.exists():
            _drop_lines_after(path, start_step)
        path.open("ab").close()  # said now, where it cannot be written
        self._file = AppendedFile(path)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append the line of a step; metrics are floats by name, NaN included."""
        line = json.dumps({"step": step, "time": round(time.time(), 3), **metrics}) + "\n"
        self._file.append(line.encode())

    def close(self) -> None:
        """Write what waits for room on the disk, or say that it is lost."""
        self._file.close()


def _set_aside(path: Path) -> None:
    """Keep what another run, or one that began afresh, has written here: metrics.1.jsonl, ..."""
    if path.stat().st_size:
        path.rename(_free_name(path))


def _free_name(path: Path) -> Path:
    number = 1
    while (kept := path.with_suffix(f".{number}{path.suffix}")).exists():
        number += 1
    return kept


def _drop_lines_after(path: Path, step: int) -> None:
    """Keep the complete lines of steps up to `step`.

    Where there are others that are no metrics, the file as it was stays beside the new one.
    """
    *lines, _ = path.read_bytes().split(b"\n")  # the last is empty, or half a line of a killed run
    steps = [_step_of(line) for line in lines]
    if lines and all(step is None for step in steps):
        raise UserError(
            f"{path}: has no line that is metrics of a run: {lines[0][:60]!r}; move the file away, "
            "or set logging.directory to another folder"
        )
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(
        b"".join(
            line + b"\n"
            for line, its_step in zip(lines, steps, strict=True)
            if its_step is not None and its_step <= step
        )
    )
    if None in steps:
        kept = _free_name(path)
        shutil.copyfile(path, kept)
        logger.warning(
            "%s: lines that are damaged or no metrics: %d; they are left out, and the file as it "
            "was is kept as %s",
            *(path, steps.count(None), kept.name),
        )
    os.replace(temporary, path)


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics; None: it is none."""
    try:
        record = json.loads(line)  # not orjson: a loss may be NaN
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) else None
