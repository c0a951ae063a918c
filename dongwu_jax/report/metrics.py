"""The lines of metrics.jsonl as columns."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dongwu_jax.report.json_lines import number


@dataclass(frozen=True)
class Metrics:
    """Lines in the order of the file, those of steps that were done again left out.

    Attributes:
        step: int64 [lines].
        time: float64 [lines], seconds since the epoch; NaN in old files.
        columns: float64 [lines] of each metric, NaN where a line has none of it.
        redone: lines that were left out, in order: steps and times. A run that went back to an
            older state without a new start leaves them.
    """

    step: np.ndarray
    time: np.ndarray
    columns: dict[str, np.ndarray]
    redone: "Redone"

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and finite values of one metric; empty if the run has none of it."""
        values = self.columns.get(name)
        if values is None:
            return np.empty(0, np.int64), np.empty(0)
        there = np.isfinite(values)
        return self.step[there], values[there]

    @property
    def last_step(self) -> int:
        """Of the last training step that was reported; 0 if none was."""
        steps, _ = self.series("loss")
        return int(steps[-1]) if len(steps) else 0


@dataclass(frozen=True)
class Redone:
    """Lines whose steps were done again."""

    step: np.ndarray  # int64
    time: np.ndarray  # float64


def as_metrics(records: Iterable[dict[str, Any]]) -> Metrics:
    """Sort the numbers of records into columns; records without a step are passed over."""
    steps: list[int] = []
    times: list[float] = []
    cells: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        step = record.pop("step", None)
        if not isinstance(step, int):
            continue
        times.append(number(record.pop("time", None)))
        for name, value in record.items():
            rows, values = cells.setdefault(name, ([], []))
            rows.append(len(steps))
            values.append(number(value))
        steps.append(step)
    columns = {name: _column(len(steps), *found) for name, found in cells.items()}
    return _without_redone(np.array(steps, np.int64), np.array(times), columns)


def _column(length: int, rows: list[int], values: list[float]) -> np.ndarray:
    column = np.full(length, np.nan)
    column[rows] = values
    return column


def _without_redone(step: np.ndarray, time: np.ndarray, columns: dict[str, np.ndarray]) -> Metrics:
    """A line is out of date when a training step up to its own comes after it."""
    trains = np.isfinite(columns["loss"]) if "loss" in columns else np.zeros(len(step), bool)
    later = np.where(trains, step, np.iinfo(np.int64).max)
    lowest_after = np.append(np.minimum.accumulate(later[::-1])[::-1][1:], np.iinfo(np.int64).max)
    redone = lowest_after[: len(step)] <= step
    kept = ~redone
    return Metrics(
        step[kept],
        time[kept],
        {name: column[kept] for name, column in columns.items()},
        Redone(step[redone], time[redone]),
    )
