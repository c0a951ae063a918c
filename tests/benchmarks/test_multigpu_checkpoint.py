"""The checksum of `benchmarks/multigpu_checkpoint.py` notices what a sum of numbers would not."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from command_lines import load_script

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_every_bit_place_and_array_counts(dtype, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    checksum = load_script(BENCHMARKS / "multigpu_checkpoint.py").checksum
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(1000 * rng.normal(size=(3, 5, 4)), dtype) for _ in range(2))
    whole = checksum([first, second])
    assert whole == checksum([first, second])
    flipped = np.array(first)
    flipped.reshape(-1).view(np.uint8)[7] ^= 1
    places = first.at[0, 1, 2].set(first[2, 4, 3]).at[2, 4, 3].set(first[0, 1, 2])
    others = [
        [jnp.asarray(flipped), second],
        [places, second],
        [first.swapaxes(0, 1).reshape(first.shape), second],
        [second, first],
        [first],
    ]
    assert whole not in [checksum(other) for other in others]
