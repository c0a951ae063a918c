"""The starts of a run, from its events: where each began, how far it came and why it ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dongwu_jax.report.metrics import Metrics
from dongwu_jax.training.records.run_records import number, record

Event = dict[str, Any]

_WITHIN_A_SESSION = ("compiled", "pause", "data", "step_times", "stop", "end")


@dataclass
class Session:
    """One start of a run. Times are seconds since the epoch.

    Attributes:
        start: the event `start`.
        events: what followed, up to its end; also what was said before `start`, while loading.
        ended: its last sign of life.
        last_step: the last step that it reported.
        redone_from: the step from which a later start did its steps again; None: all count.
    """

    start: Event
    events: list[Event] = field(default_factory=list)
    ended: float = 0.0
    last_step: int = 0
    redone_from: int | None = None

    @property
    def first_step(self) -> int:
        """The step from which it went on."""
        return int(number(self.start.get("step"), 0))

    @property
    def began(self) -> float:
        """When its process began."""
        return number(self.start.get("began"), number(self.start.get("time"), 0))

    @property
    def config(self) -> dict[str, Any]:
        """The resolved run."""
        return record(self.start.get("config"))

    @property
    def end(self) -> Event | None:
        """The event `end`; None where it still runs or was killed."""
        return next((event for event in self.events if event.get("event") == "end"), None)

    @property
    def lost_steps(self) -> int:
        """Steps that a later start did again, or that were thrown away by going back."""
        lost = [
            (number(event.get("to"), 0), number(event.get("step"), 0))
            for event in self.of_kind("rollback")
        ]
        if self.redone_from is not None:
            lost.append((self.redone_from, self.last_step))
        steps, reached = 0, float(self.first_step)
        for first, last in sorted(lost):  # each step once, whatever overlaps
            steps += int(max(last - max(first, reached), 0))
            reached = max(reached, last)
        return steps

    def of_kind(self, kind: str) -> list[Event]:
        """Its events of one kind."""
        return [event for event in self.events if event.get("event") == kind]


def find_sessions(events: Sequence[Event], metrics: Metrics) -> list[Session]:
    """The starts that belong to the present run, oldest first; none for a run without events."""
    sessions = _latest_run(_split(events))
    for session, following in zip(sessions, [*sessions, None][1:], strict=True):
        _find_end(session, following, metrics)
    lowest = None
    for session in reversed(sessions):
        session.redone_from = lowest if lowest is not None and lowest < session.last_step else None
        lowest = session.first_step if lowest is None else min(lowest, session.first_step)
    return sessions


def _split(events: Sequence[Event]) -> list[Session]:
    """Events by start. What is found while loading, such as damage, is said before `start`."""
    following: list[Event | None] = [None] * len(events)  # the next start after each event
    for place in range(len(events) - 2, -1, -1):
        after = events[place + 1]
        following[place] = after if after.get("event") == "start" else following[place + 1]
    sessions: list[Session] = []
    early: list[Event] = []
    for event, next_start in zip(events, following, strict=True):
        if event.get("event") == "start":
            sessions.append(Session(event, early))
            early = []
        elif sessions and sessions[-1].end is None and not _is_of(next_start, event):
            sessions[-1].events.append(event)
        else:
            early.append(event)
    if sessions:
        sessions[-1].events.extend(early)
    return sessions


def _is_of(next_start: Event | None, event: Event) -> bool:
    """Whether an event was written by the process whose `start` follows it."""
    if next_start is None or event.get("event") in _WITHIN_A_SESSION:
        return False
    return number(event.get("time"), 0) >= number(next_start.get("began"), np.inf)


def _latest_run(sessions: list[Session]) -> list[Session]:
    """Without those of another run that wrote into this folder before.

    A run that is killed before its first checkpoint begins afresh, and is the same; one that
    begins afresh although a checkpoint had been saved is another.
    """
    first, saved = 0, False
    for number_of, session in enumerate(sessions):
        if saved and not session.start.get("resumed"):
            first, saved = number_of, False
        pauses = session.of_kind("pause")
        saved = saved or any(pause.get("what") == "checkpoint" for pause in pauses)
    return sessions[first:]


def _find_end(session: Session, following: Session | None, metrics: Metrics) -> None:
    """Set `ended` and `last_step` from the last sign of life before the next start."""
    until = following.began if following else np.inf
    end = session.end
    times = [number(event.get("time"), 0) for event in (session.start, *session.events)]
    steps = [session.first_step]
    within = (metrics.time >= session.began) & (metrics.time <= until)
    if within.any():
        times.append(float(metrics.time[within].max()))
        steps.append(int(metrics.step[within].max()))
    if following is not None:
        reported = number(following.start.get("previous_time"))
        if session.began <= reported <= until:
            times.append(reported)
            steps.append(int(number(following.start.get("previous_step"), 0)))
    if end is not None:
        times.append(number(end.get("time"), 0))
        steps.append(int(number(end.get("step"), 0)))
    session.ended = min(max(times), until)
    session.last_step = max(steps)
