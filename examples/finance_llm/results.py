"""What the stages left in the working folder: evaluations, logs of runs, seconds, exports."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dongwu_jax.errors import UserError
from dongwu_jax.training.records.run_records import read_json_lines

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
        return list(read_json_lines(self.work / "runs" / str(run) / "metrics.jsonl"))

    def config(self, run: str) -> Record | None:
        """The settings with which a run was started last."""
        events = read_json_lines(self.work / "runs" / run / "events.jsonl")
        starts = [event["config"] for event in events if event.get("event") == "start"]
        return starts[-1] if starts else None

    def seconds(self) -> dict[str, int]:
        """Seconds of each stage that is done."""
        texts = {path.name: path.read_text() for path in (self.work / "done").glob("[0-9][0-9]_*")}
        return {name: int(text) for name, text in sorted(texts.items()) if text.strip().isdigit()}

    def export_bytes(self) -> dict[str, int]:
        """Sizes of the exported folders."""
        folders = {name: self.work / "export" / name for name in EXPORTS}
        return {name: _size(folder) for name, folder in folders.items() if folder.is_dir()}


def _read(path: Path) -> Record:
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or not {"results", "fineval"} & set(record):
        raise UserError(f"{path}: is no whole report; delete it and run its stage again")
    return record


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
