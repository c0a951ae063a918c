"""Interleave several datasets by weight, greedily and deterministically, as Megatron-LM does.

Sample i comes from the dataset k with the largest deficit `w_k * max(i, 1) - count_k` in float64,
the lowest k on ties. The first n choices never depend on how many follow.
Measured: 5 to 20 million samples a second for 2 to 10 datasets on one CPU core.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dongwu_jax.config.sections import BlendEntry
from dongwu_jax.errors import UserError

# Samples laid out at once, as _LANES runs of _STEPS samples: small enough to stay in cache.
_LANES = 2048
_STEPS = 1024


class BlendIndexes(NamedTuple):
    """Where each sample of a blend comes from. Memory: 10 bytes a sample."""

    dataset_index: np.ndarray  # int16 [samples]
    dataset_sample_index: np.ndarray  # int64 [samples]: sample number within that dataset


def blend_weights(
    blend: Sequence[BlendEntry], order: Literal["epoch", "megatron"]
) -> np.ndarray | None:
    """The share of each dataset of a configured blend, float64 [datasets] with sum 1.

    None stands for what Megatron does with prefixes that have no weights: one epoch of each, or a
    single dataset without a blend. In `epoch` order a missing weight is 1.

    Raises:
        UserError: some datasets have a weight and others have none, in `megatron` order.
    """
    weighted = [entry for entry in blend if entry.weight is not None]
    if order == "megatron" and len(weighted) < len(blend):
        if weighted:
            raise UserError(
                f"data.blend: {weighted[0].prefix} has a weight and others have none; with "
                "data.order=megatron give every dataset a weight, or none"
            )
        return None
    return normalize_weights([entry.weight or 1.0 for entry in blend])


def normalize_weights(weights: ArrayLike) -> np.ndarray:
    """Scale weights to sum 1. float64 [datasets]."""
    array = np.array(weights, dtype=np.float64)
    return array / np.sum(array)


def build_blend(weights: ArrayLike, num_samples: int) -> BlendIndexes:
    """Choose the dataset of every sample.

    The rule is sequential, but each choice only depends on the counts before it. So the samples
    are cut into many short runs that advance in lockstep, each from guessed counts; then every
    run whose guess differs from the counts its predecessor ended with is repeated from those,
    until all agree. What agrees is exactly the sequential result: the first run starts from the
    true counts, and each later one from the end of the one before.

    Args:
        weights: relative shares [datasets]. They are scaled to sum 1, also if they nearly do:
            Megatron scales twice, and the last bit decides ties.
        num_samples: length of the blend.
    """
    shares = normalize_weights(weights)
    dataset_index = np.empty(num_samples, dtype=np.int16)
    counts = np.zeros(len(shares), dtype=np.int64)
    for start in range(0, num_samples, _LANES * _STEPS):
        stop = min(num_samples, start + _LANES * _STEPS)
        chosen, counts = _choose_block(shares, start, -(-(stop - start) // _STEPS), counts)
        dataset_index[start:stop] = chosen[: stop - start]
    return BlendIndexes(dataset_index, _number_within_dataset(dataset_index, len(shares)))


def _choose_block(
    weights: np.ndarray, start: int, num_lanes: int, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The choices of the `num_lanes * _STEPS` samples from `start`, and the counts after them.

    Args:
        counts: int64 [datasets], true at `start`.
    """
    starts = start + np.arange(num_lanes, dtype=np.int64) * _STEPS
    begin = _guess_counts(weights, starts)
    begin[0] = counts
    end = np.empty_like(begin)
    chosen = np.empty((num_lanes, _STEPS), dtype=np.int16)
    stale = np.arange(num_lanes)
    while len(stale):
        chosen[stale], end[stale] = _run_lanes(weights, starts[stale], begin[stale])
        stale = 1 + np.flatnonzero((begin[1:] != end[:-1]).any(axis=1))
        begin[stale] = end[stale - 1]
    return chosen.reshape(-1), end[-1]


def _guess_counts(weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Counts near `w * start` that sum to `start`, by largest remainder. [lanes, datasets]."""
    exact = starts[:, None] * weights
    counts = np.floor(exact).astype(np.int64)
    missing = starts - counts.sum(axis=1)
    rank = np.argsort(np.argsort(counts - exact, axis=1), axis=1)
    return counts + (rank < missing[:, None])


def _run_lanes(
    weights: np.ndarray, starts: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the greedy rule _STEPS times in every lane.

    Args:
        starts: int64 [lanes], sample number each lane begins at.
        counts: int64 [lanes, datasets] at that sample.

    Returns:
        int16 [lanes, _STEPS] choices and int64 [lanes, datasets] final counts.
    """
    lanes = np.arange(len(starts))
    drawn = counts.astype(np.float64)  # exact below 2**53
    chosen = np.empty((_STEPS, len(starts)), dtype=np.int16)
    for step in range(_STEPS):
        deficits = np.maximum(starts + step, 1).astype(np.float64)[:, None] * weights
        deficits -= drawn
        choice = deficits.argmax(axis=1)
        drawn[lanes, choice] += 1.0
        chosen[step] = choice
    return chosen.T, drawn.astype(np.int64)


def _number_within_dataset(dataset_index: np.ndarray, num_datasets: int) -> np.ndarray:
    """Count up within each dataset. int64 [samples]."""
    numbers = np.empty(len(dataset_index), dtype=np.int64)
    for dataset in range(num_datasets):
        places = np.flatnonzero(dataset_index == dataset)
        numbers[places] = np.arange(len(places))
    return numbers
