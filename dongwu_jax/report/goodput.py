"""Where the wall time of a run went: every second is in one interval of one kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from dongwu_jax.report.metrics import Metrics
from dongwu_jax.report.sessions import Session
from dongwu_jax.training.records.run_records import number

Kind = Literal[
    "steps", "lost", "startup", "compilation", "evaluation", "checkpoint", "other", "down"
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Interval:
    """From `start` to `end`, in seconds since the epoch, start `session` did one kind of thing."""

    start: float
    end: float
    kind: Kind
    session: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


def find_intervals(sessions: Sequence[Session], metrics: Metrics) -> list[Interval]:
    """The run's time without gaps, from the beginning of the first start to the last sign of life.

    down: between the end of a start and the beginning of the next. steps: those that count; lost:
    those that a later start did again, or that were thrown away by going back to a checkpoint.
    """
    intervals: list[Interval] = []
    for place, session in enumerate(sessions):
        began = session.began
        if intervals:
            began = max(began, intervals[-1].end)
            intervals.append(Interval(intervals[-1].end, began, "down", place))
        intervals.extend(_of_session(place, session, began, metrics))
    return [interval for interval in intervals if interval.end > interval.start]


def totals(intervals: Sequence[Interval], session: int | None = None) -> dict[Kind, float]:
    """Seconds of each kind, of the run or of one start."""
    seconds: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    for interval in intervals:
        if session is None or interval.session == session:
            seconds[interval.kind] += interval.seconds
    return seconds


def goodput(seconds: dict[Kind, float], while_up: bool = False) -> float | None:
    """Share of the time that went into steps that count; None without any time.

    Args:
        while_up: of the time in which a process ran, without what lies between two starts.
    """
    whole = sum(seconds.values()) - (seconds["down"] if while_up else 0.0)
    return seconds["steps"] / whole if whole > 0 else None


def timeline(intervals: Sequence[Interval], columns: int) -> np.ndarray:
    """Share of each kind in each of equal stretches of the run: float64 [columns, kinds]."""
    shares = np.zeros((columns, len(KINDS)))
    if not intervals:
        return shares
    edges = np.linspace(intervals[0].start, intervals[-1].end, columns + 1)
    for interval in intervals:
        first = max(int(np.searchsorted(edges, interval.start, side="right")) - 1, 0)
        last = min(int(np.searchsorted(edges, interval.end, side="left")), columns)
        for column in range(first, last):
            inside = min(interval.end, edges[column + 1]) - max(interval.start, edges[column])
            shares[column, KINDS.index(interval.kind)] += max(inside, 0.0)
    return shares / max(edges[1] - edges[0], 1e-12)


def _of_session(place: int, session: Session, began: float, metrics: Metrics) -> list[Interval]:
    """Start-up and compilation, then steps, interrupted by pauses and cut where they are lost."""
    lost = _lost_stretches(session, metrics)
    intervals: list[Interval] = []
    now = began
    for start, end, kind in sorted(_interruptions(session, began)):
        start = min(max(start, now), session.ended)
        end = min(max(end, start), session.ended)
        intervals.extend(_steps(place, now, start, lost))
        intervals.append(Interval(start, end, kind, place))
        now = end
    intervals.extend(_steps(place, now, session.ended, lost))
    return intervals


def _interruptions(session: Session, began: float) -> list[tuple[float, float, Kind]]:
    """What was no step: from when, to when, and its kind."""
    compiled = session.of_kind("compiled")
    if compiled:
        ready = number(compiled[0].get("time"), 0)
        building = ready - number(compiled[0].get("seconds"), 0)
        found: list[tuple[float, float, Kind]] = [
            (began, building, "startup"),
            (building, ready, "compilation"),
        ]
    else:  # it ended before its first step, or had none to do
        found = [(began, number(session.start.get("time"), session.ended), "startup")]
    return found + [_pause(event) for event in session.of_kind("pause")]


def _pause(event: dict[str, Any]) -> tuple[float, float, Kind]:
    time, what = number(event.get("time"), 0), event.get("what")
    kind: Kind = what if what in ("evaluation", "checkpoint") else "other"
    return time - number(event.get("seconds"), 0), time, kind


def _steps(
    place: int, start: float, end: float, lost: Sequence[tuple[float, float]]
) -> list[Interval]:
    """A stretch of steps, cut where those begin and end that were lost."""
    intervals = []
    now = start
    for first, last in lost:
        first, last = min(max(first, now), end), min(max(last, now), end)
        intervals.append(Interval(now, first, "steps", place))
        intervals.append(Interval(first, last, "lost", place))
        now = last
    return [*intervals, Interval(now, end, "steps", place)]


def _lost_stretches(session: Session, metrics: Metrics) -> list[tuple[float, float]]:
    """From when to when a start did steps that were lost, in order."""
    stretches = []
    for event in session.of_kind("rollback"):
        kept = int(number(event.get("to"), session.first_step))
        at = number(event.get("time"), session.ended)
        stretches.append((_time_of_step(session, kept, metrics), at))
    if session.redone_from is not None:
        stretches.append((_time_of_step(session, session.redone_from, metrics), session.ended))
    return sorted(stretches)


def _time_of_step(session: Session, step: int, metrics: Metrics) -> float:
    """When a start had done `step`, from its last line up to there and the pace of then."""
    mine = (metrics.time >= session.began) & (metrics.time <= session.ended)
    mine &= metrics.step <= step
    if step <= session.first_step or not mine.any():
        return session.began
    line = int(np.flatnonzero(mine)[-1])
    pace = metrics.columns.get("step_seconds", np.zeros(0))[: line + 1]
    paces = pace[np.isfinite(pace)]
    seconds = float(paces[-1]) if len(paces) else 0.0
    return float(metrics.time[line]) + (step - int(metrics.step[line])) * seconds
