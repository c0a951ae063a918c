"""Are these the very weights that adapters were trained on?

Adapters mean nothing on other weights, so a checkpoint of them keeps a sum of each tensor's bits:
whole numbers, which come out the same in any order, on any mesh.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.models.parameters import Parameters, named_parameters

BitSums = dict[str, int]
_WORDS = {2: np.uint16, 4: np.uint32}  # by bytes of a number


def bit_sums(weights: Parameters) -> BitSums:
    """Of each array by dotted name: the sum of its numbers' bits modulo 2**32."""
    sums = jax.jit(lambda tree: jax.tree.map(_sum_on_device, tree))(weights)
    return {name: int(value) for name, value in named_parameters(sums).items()}


def _sum_on_device(x: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])
    return jnp.sum(words, dtype=jnp.uint32)


def bit_sum(values: np.ndarray) -> int:
    """The same of an array in host memory."""
    words = np.ascontiguousarray(values).view(_WORDS[values.dtype.itemsize])
    return int(words.sum(dtype=np.uint32))


def describe_base(weights: Parameters, dtype: str) -> dict[str, Any]:
    """What a checkpoint of adapters keeps of the weights beneath them."""
    return {"dtype": dtype, "sums": bit_sums(weights)}


def check_same_base(kept: Mapping[str, Any], now: Mapping[str, Any], origin: object) -> None:
    """Refuse adapters that were trained on other weights.

    Args:
        kept, now: of `describe_base`; in another dtype of computation they cannot be compared.
        origin: where the weights of `now` come from, for the error.

    Raises:
        UserError: naming the first tensor that differs.
    """
    if kept["dtype"] != now["dtype"]:
        return
    for name, total in kept["sums"].items():
        if now["sums"].get(name) != total:
            refuse_base(name, origin)


def refuse_base(name: str, origin: object) -> None:
    """Say that a tensor is not the one that adapters were trained on.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{origin}: {name} is not what the adapters were trained on; name the weights that the "
        "run began with (training.initial_weights; tools/convert.py: --base-weights)"
    )
