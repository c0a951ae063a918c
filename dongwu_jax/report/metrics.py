"""The lines of metrics.jsonl as columns."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dongwu_jax.training.records.run_records import number

_LARGEST_STEP = 1 << 53  # beyond it a number of a damaged file


@dataclass(frozen=True)
class Metrics:
    """Lines in the order of the file; steps never fall.

    Attributes:
        step: int64 [lines].
        time: float64 [lines], seconds since the epoch; NaN in old files.
        columns: float64 [lines] of each metric, NaN where a line has none of it.
    """

    step: np.ndarray
    time: np.ndarray
    columns: dict[str, np.ndarray]

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


def as_metrics(records: Iterable[dict[str, Any]]) -> Metrics:
    """Sort the numbers of records into columns; records without a step are passed over."""
    steps: list[int] = []
    times: list[float] = []
    cells: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        step = record.pop("step", None)
        if not isinstance(step, int) or abs(step) > _LARGEST_STEP:
            continue
        times.append(number(record.pop("time", None)))
        for name, value in record.items():
            rows, values = cells.setdefault(name, ([], []))
            rows.append(len(steps))
            values.append(number(value))
        steps.append(step)
    columns = {name: _column(len(steps), *found) for name, found in cells.items()}
    numbers = np.array(steps, np.int64)
    latest = _before_none_lower(numbers)
    columns = {name: column[latest] for name, column in columns.items()}
    return Metrics(numbers[latest], np.array(times)[latest], columns)


def _column(length: int, rows: list[int], values: list[float]) -> np.ndarray:
    column = np.full(length, np.nan)
    column[rows] = values
    return column


def _before_none_lower(steps: np.ndarray) -> np.ndarray:
    """Which lines are followed by none of a lower step: those would be of steps done again."""
    lowest = np.minimum.accumulate(steps[::-1])[::-1]
    return steps <= lowest
