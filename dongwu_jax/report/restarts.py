"""One row for each start of a run: how far it came, why it ended, what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from dongwu_jax.report.goodput import Interval, Kind, goodput, totals
from dongwu_jax.report.run_folder import RunFolder
from dongwu_jax.report.sessions import Session
from dongwu_jax.report.settings import Change, changes_between

_LONGEST_REASON = 300


@dataclass(frozen=True)
class Start:
    """A row.

    Attributes:
        ending: why it ended, in words.
        seconds: of each kind, "down" being the time before it.
        goodput: share of the time it was up that went into steps that count.
    """

    began: float
    first_step: int
    last_step: int
    lost_steps: int
    ending: str
    seconds: dict[Kind, float]
    goodput: float | None
    changes: list[Change]


def list_starts(run: RunFolder, intervals: Sequence[Interval], running: bool) -> list[Start]:
    """The rows, oldest first."""
    rows = []
    following: list[Session | None] = [*run.sessions, None][1:]
    pairs = zip(run.sessions, following, changes_between(run.sessions), strict=True)
    for place, (session, after, changed) in enumerate(pairs):
        seconds = totals(intervals, place)
        rows.append(
            Start(
                session.began,
                session.first_step,
                session.last_step,
                session.lost_steps,
                _ending(session, after, run.hangs, running and after is None),
                seconds,
                goodput(seconds, while_up=True),
                changed,
            )
        )
    return rows


def _ending(
    session: Session,
    following: Session | None,
    hangs: Sequence[tuple[float, str]],
    running: bool,
) -> str:
    end = session.end
    if end is not None:
        stops = session.of_kind("stop")
        reason = str(end.get("reason"))
        detail = stops[-1].get("reason") if stops else end.get("message")
        return f"{reason}: {detail}"[:_LONGEST_REASON] if detail else reason
    until = following.began if following else float("inf")
    for time, name in hangs:
        if session.ended <= time < until:
            return f"hung: see {name}"
    return "runs" if running else "killed, or the machine failed: it left no word"
