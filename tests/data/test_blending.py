"""The greedy blend against golden vectors, Megatron's arrays and the plain sequential rule."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dongwu_jax.config.sections import DataConfig
from dongwu_jax.data.blending import blend_weights, build_blend, normalize_weights
from dongwu_jax.errors import UserError


def sequential(weights: list[float], num_samples: int) -> list[int]:
    """The rule as written down, one sample at a time."""
    shares = normalize_weights(weights).tolist()
    counts, chosen = [0] * len(shares), []
    for i in range(num_samples):
        deficits = [share * max(i, 1) - count for share, count in zip(shares, counts, strict=True)]
        best = deficits.index(max(deficits))
        counts[best] += 1
        chosen.append(best)
    return chosen


@pytest.mark.parametrize(
    ("weights", "datasets", "samples"),
    [
        (
            [0.3, 0.7],
            "1 0 1 1 0 1 1 0 1 1 0 1 1 1 0 1 1 0 1 1",
            "0 0 1 2 1 3 4 2 5 6 3 7 8 9 4 10 11 5 12 13",
        ),
        (
            [0.5, 0.3, 0.2],
            "0 1 2 0 1 0 2 0 1 0 0 1 2 0 1 0 2 0 1 0",
            "0 0 0 1 1 2 1 3 2 4 5 3 2 6 4 7 3 8 5 9",
        ),
        # Weighted by size up to the whole, which uses every sample of every dataset once.
        ([2, 5, 3], "1 2 0 1 2 1 0 1 2 1", "0 0 0 1 1 2 1 3 2 4"),
    ],
)
def test_golden(weights: list[float], datasets: str, samples: str) -> None:
    expected = [int(number) for number in datasets.split()]
    blend = build_blend(weights, len(expected))
    assert blend.dataset_index.tolist() == expected
    assert blend.dataset_sample_index.tolist() == [int(number) for number in samples.split()]
    assert (blend.dataset_index.dtype, blend.dataset_sample_index.dtype) == (np.int16, np.int64)


def test_arrays_that_megatron_wrote(shared_data: Path) -> None:
    golden = np.load(shared_data / "megatron/sampling/s05_blend_30_70.npz")
    for split in ("train", "valid", "test"):
        blend = build_blend([0.3, 0.7], len(golden[f"{split}/dataset_index"]))
        for name, array in blend._asdict().items():
            np.testing.assert_array_equal(array, golden[f"{split}/{name}"])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 12) | st.floats(1e-5, 1.0), min_size=1, max_size=12),
    st.integers(0, 400),
)
def test_equals_the_sequential_rule(weights: list[float], num_samples: int) -> None:
    with pytest.MonkeyPatch.context() as patch:  # many runs and blocks within few samples
        patch.setattr("dongwu_jax.data.blending._LANES", 5)
        patch.setattr("dongwu_jax.data.blending._STEPS", 8)
        chosen = build_blend(weights, num_samples).dataset_index.tolist()
    assert chosen == sequential(weights, num_samples)


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1] * 10, [0.5, 1e-4, 0.4999]])
def test_equals_the_sequential_rule_over_many_runs(weights: list[float]) -> None:
    blend = build_blend(weights, 50_000)
    assert blend.dataset_index.tolist() == sequential(weights, 50_000)
    for dataset in range(len(weights)):
        numbers = blend.dataset_sample_index[blend.dataset_index == dataset]
        np.testing.assert_array_equal(numbers, np.arange(len(numbers)))


def test_longer_blend_starts_the_same() -> None:
    short, long = build_blend([3, 1, 2], 3000), build_blend([3, 1, 2], 9000)
    np.testing.assert_array_equal(short.dataset_index, long.dataset_index[:3000])


def test_weights_of_the_configuration() -> None:
    weighted = DataConfig(blend=[{"prefix": "a", "weight": 3}, {"prefix": "b", "weight": 1}])
    for order in ("epoch", "megatron"):
        weights = blend_weights(weighted.blend, order)
        assert weights is not None
        assert weights.tolist() == [0.75, 0.25]
    bare = DataConfig(blend=["a", "b"])
    weights = blend_weights(bare.blend, "epoch")
    assert weights is not None
    assert weights.tolist() == [0.5, 0.5]
    assert blend_weights(bare.blend, "megatron") is None


def test_some_weights_are_an_error_in_megatron_order() -> None:
    config = DataConfig(blend=["a", {"prefix": "b", "weight": 2}])
    with pytest.raises(UserError, match="b has a weight and others have none"):
        blend_weights(config.blend, "megatron")
