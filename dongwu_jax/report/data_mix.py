"""Which data a run has seen: shares planned and real, and how often each dataset was read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from dongwu_jax.report.sessions import Session
from dongwu_jax.training.records.run_records import number, record, records


@dataclass(frozen=True)
class DatasetUse:
    """One dataset of the blend.

    Attributes:
        tokens: of the whole dataset; None where the run did not record it.
        planned: share of the samples; None where none was set.
        real: share of the samples of saved steps.
        seen_tokens: of saved steps.
        epochs: how often its part for training was gone through; packed conversations are padded,
            so theirs is at most this.
    """

    name: str
    tokens: float | None
    planned: float | None
    real: float | None
    seen_tokens: float | None
    epochs: float | None


def data_mix(sessions: Sequence[Session], config: dict[str, Any]) -> list[DatasetUse]:
    """The datasets of the present blend; of an old run only what its configuration names."""
    data = record(config.get("data"))
    blend = records(data.get("blend"))
    recorded = records(sessions[-1].start.get("blend")) if sessions else []
    names = [str(entry.get("prefix")) for entry in blend]
    if len(recorded) != len(names):
        recorded = [{}] * len(names)
    weights = [number(entry.get("weight"), 0) for entry in recorded]
    if not any(weights):
        weights = [number(entry.get("weight"), 1 if len(blend) == 1 else 0) for entry in blend]
    drawn = samples_drawn(sessions, len(names))
    whole, planned = sum(drawn), sum(weights)
    length = number(data.get("sequence_length"), 0)
    trained = 1.0 if data.get("validation_blend") is not None else _train_share(data.get("split"))
    uses = []
    for name, entry, weight, samples in zip(names, recorded, weights, drawn, strict=True):
        tokens = number(entry.get("tokens"), 0) or None
        uses.append(
            DatasetUse(
                name=PurePath(name).name,
                tokens=tokens,
                planned=weight / planned if planned else None,
                real=samples / whole if whole else None,
                seen_tokens=samples * length if whole else None,
                epochs=samples * length / (tokens * trained) if tokens and whole else None,
            )
        )
    return uses


def samples_drawn(sessions: Sequence[Session], datasets: int) -> list[float]:
    """Samples of each dataset in the saved steps that count; steps done twice count once.

    Where the blend had another number of datasets, its samples are left out.
    """
    drawn = [0.0] * datasets
    for session in sessions:
        for event in session.of_kind("data"):
            samples = event.get("samples")
            last = number(event.get("last_step"), 0)
            again = session.redone_from is not None and last > session.redone_from
            if isinstance(samples, list) and len(samples) == datasets and not again:
                drawn = [
                    so_far + number(new, 0) for so_far, new in zip(drawn, samples, strict=True)
                ]
    return drawn


def _train_share(split: Any) -> float:
    """The first of "99,1,0" as a share."""
    try:
        shares = [float(part) for part in str(split).split(",")]
    except ValueError:
        return 1.0
    return shares[0] / sum(shares) if sum(shares) > 0 and shares[0] > 0 else 1.0
