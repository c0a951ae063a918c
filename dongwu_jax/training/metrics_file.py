"""metrics.jsonl: the metrics of a run's steps, one JSON object a line."""

import json
import os
import time
from pathlib import Path

from dongwu_jax.errors import UserError


class MetricsFile:
    """One JSON object a step; a resumed run replaces what it is going to do again.

    `time` is in seconds since the epoch.
    """

    def __init__(self, path: Path, start_step: int, resumed: bool):
        if path.exists() and not resumed:
            _set_aside(path)
        elif path.exists():
            _drop_lines_after(path, start_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(
            json.dumps({"step": step, "time": round(time.time(), 3), **metrics}) + "\n"
        )
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _set_aside(path: Path) -> None:
    """Keep what another run, or one that began afresh, has written here: metrics.1.jsonl, ..."""
    if path.stat().st_size:
        number = 1
        while (kept := path.with_suffix(f".{number}{path.suffix}")).exists():
            number += 1
        path.rename(kept)


def _drop_lines_after(path: Path, step: int) -> None:
    """Keep the complete lines of steps up to `step`."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            keep = json.loads(line)["step"] <= step
        except json.JSONDecodeError:  # the last line of a killed run
            continue
        except (KeyError, TypeError):
            raise UserError(
                f"{path}: has a line that is no metrics of a run: {line[:60]!r}; move the file "
                "away, or set logging.directory to another folder"
            ) from None
        if keep:
            kept.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
