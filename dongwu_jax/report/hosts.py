"""How long the steps of each host took, where it was recorded: events `step_times`.

Each holds `seconds`, by host the median of the steps since the event before.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dongwu_jax.report.sessions import Session
from dongwu_jax.training.records.run_records import number


@dataclass(frozen=True)
class HostTimes:
    """One host over the run.

    Attributes:
        median, latest: seconds of a step.
        slowness: the median of its times over the median host's at the same moment; 1: as others.
        worst: the largest of these ratios, at step `worst_step`.
        slowest: share of the records in which it was the slowest.
    """

    host: str
    median: float
    latest: float
    slowness: float
    worst: float
    worst_step: int
    slowest: float


def host_times(sessions: Sequence[Session]) -> list[HostTimes]:
    """Slowest first; none if nothing was recorded."""
    records = [
        (int(number(event.get("step"), 0)), _seconds(event))
        for session in sessions
        for event in session.of_kind("step_times")
    ]
    records = [(step, seconds) for step, seconds in records if seconds]
    ratios: dict[str, list[tuple[float, int]]] = {}
    times: dict[str, list[float]] = {}
    slowest = [max(seconds, key=lambda host: seconds[host]) for _, seconds in records]
    for step, seconds in records:
        usual = statistics.median(seconds.values())
        for host, spent in seconds.items():
            ratios.setdefault(host, []).append((spent / usual, step))
            times.setdefault(host, []).append(spent)
    hosts = [
        HostTimes(
            host,
            statistics.median(times[host]),
            times[host][-1],
            statistics.median(ratio for ratio, _ in found),
            *max(found),
            slowest.count(host) / len(records),
        )
        for host, found in ratios.items()
    ]
    return sorted(hosts, key=lambda host: -host.slowness)


def _seconds(event: dict[str, Any]) -> dict[str, float]:
    """Positive times by host."""
    seconds = event.get("seconds")
    if not isinstance(seconds, dict):
        return {}
    return {host: number(spent) for host, spent in seconds.items() if number(spent) > 0}
