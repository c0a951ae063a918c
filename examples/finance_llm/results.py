"""What the stages left in the working folder: evaluations, logs of runs, seconds, exports."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dongwu_jax.errors import UserError

Record = dict[str, Any]

EXPORTS = ("hf", "megatron", "int8", "fp8", "small")


@dataclass(frozen=True)
class Results:
    """The working folder, read."""

    work: Path

    def evaluation(self, name: str, kind: str) -> Record | None:
        """A report of tools/evaluate.py, or None where there is none."""
        path = self.work / "results" / f"{name}.{kind}.json"
        return _read(path) if path.is_file() else None

    def metrics(self, run: str | None) -> list[Record]:
        """The reported steps of a run."""
        return _lines(self.work / "runs" / str(run) / "metrics.jsonl")

    def config(self, run: str) -> Record | None:
        """The settings with which a run was started last."""
        events = _lines(self.work / "runs" / run / "events.jsonl")
        starts = [event["config"] for event in events if event["event"] == "start"]
        return starts[-1] if starts else None

    def seconds(self) -> dict[str, int]:
        """Seconds of each stage that is done."""
        paths = sorted((self.work / "done").glob("[0-9][0-9]_*"))
        return {path.name: int(path.read_text()) for path in paths}

    def export_bytes(self) -> dict[str, int]:
        """Sizes of the exported folders."""
        folders = {name: self.work / "export" / name for name in EXPORTS}
        return {name: _size(folder) for name, folder in folders.items() if folder.is_dir()}


def _read(path: Path) -> Record:
    try:
        record: Record = json.loads(path.read_text("utf-8"))
    except ValueError:
        raise UserError(f"{path}: is not JSON; delete it and run its stage again") from None
    return record


def _lines(path: Path) -> list[Record]:
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        if path.is_file()
        else []
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
