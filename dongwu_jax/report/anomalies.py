"""What a person should look at: spikes of the loss, and what the run itself said was unusual."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import median_filter

from dongwu_jax.report.metrics import Metrics
from dongwu_jax.report.sessions import Session
from dongwu_jax.training.records.run_records import number

# A spike is above the points around it by this many of their typical deviations from each other.
_DEVIATIONS = 8.0
_NEIGHBOURS = 25
_SMALLEST_RISE = 0.02  # of the loss there: less is not worth looking at, however smooth it was
_LISTED = 200

_KNOWN_FIELDS = ("time", "utc", "event", "step", "in_a_row")
_ORDINARY = ("start", "compiled", "pause", "data", "step_times", "stop", "end")


@dataclass(frozen=True)
class Anomaly:
    """Something unusual at a step; `count` of the same kind followed each other."""

    step: int
    kind: str
    what: str
    count: int = 1


def find_anomalies(metrics: Metrics, sessions: Sequence[Session]) -> list[Anomaly]:
    """Spikes and unusual events, by step."""
    found = find_spikes(metrics)
    for session in sessions:
        found.extend(_of_events(session))
    return sorted(found, key=lambda anomaly: anomaly.step)[:_LISTED]


def find_spikes(metrics: Metrics) -> list[Anomaly]:
    """Points of the training loss far above those around them, one for each group."""
    steps, losses = metrics.series("loss")
    if len(losses) < 3 * _NEIGHBOURS:
        return []
    usual = _usual(losses)
    excess = losses - usual
    deviation = 1.4826 * median_filter(np.abs(excess), 2 * _NEIGHBOURS, mode="mirror")
    deviation[: 2 * _NEIGHBOURS] = np.inf  # there is too little before it
    high = excess > np.maximum(_DEVIATIONS * deviation, _SMALLEST_RISE * np.abs(usual))
    places = np.flatnonzero(high)
    groups = np.split(places, np.flatnonzero(np.diff(places) > _NEIGHBOURS) + 1)
    spikes = []
    for group in groups:
        if len(group):
            top = group[np.argmax(losses[group])]
            what = f"loss {losses[top]:.4g}, {usual[top]:.4g} around it"
            spikes.append(Anomaly(int(steps[top]), "spike", what, len(group)))
    return spikes


def _usual(losses: np.ndarray) -> np.ndarray:
    """The median of the points before each or of those after it, whichever is higher.

    Where the loss falls steeply the former is: a fall is no spike, however steep.
    """
    around = median_filter(losses, _NEIGHBOURS, mode="nearest")
    away = _NEIGHBOURS // 2 + 1
    before = np.concatenate([np.full(away, np.inf), around[:-away]])
    after = np.concatenate([around[away:], np.full(away, -np.inf)])
    return np.maximum(before, after)


def _of_events(session: Session) -> list[Anomaly]:
    """Events that are no part of every run's course; repeated ones in a row are counted."""
    anomalies: list[Anomaly] = []
    for event in session.events:
        kind = str(event.get("event"))
        if kind in _ORDINARY:
            continue
        step = int(number(event.get("step"), session.first_step))
        what, before = _fields(event), anomalies[-1] if anomalies else None
        if before and before.kind == kind and before.what == what:
            anomalies[-1] = Anomaly(before.step, kind, what, before.count + 1)
        else:
            anomalies.append(Anomaly(step, kind.replace("_", " "), what))
    return anomalies


def _fields(event: dict[str, Any]) -> str:
    """What an event says beside its time, kind and step: texts, numbers and lists."""
    told = {name: value for name, value in event.items() if name not in _KNOWN_FIELDS}
    told = {
        name: value for name, value in told.items() if isinstance(value, str | int | float | list)
    }
    labels = {name: "" if name == "reason" else name.replace("_", " ") + " " for name in told}
    return ", ".join(f"{labels[name]}{_short(value)}" for name, value in told.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = "; ".join(map(str, value))
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:197] + "..."
