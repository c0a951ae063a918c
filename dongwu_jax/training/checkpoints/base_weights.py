"""Are these the very weights that adapters were trained on?

Adapters mean nothing on other weights, so a checkpoint of them keeps a sum of each tensor's bits:
whole numbers, which come out the same in any order, on any mesh.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.models.parameters import Parameters, cast_matrices, named_parameters

BitSums = dict[str, int]  # by dotted name of a tensor
BaseWeights = dict[str, BitSums]  # by the dtype of matrices
_WORDS = {2: np.uint16, 4: np.uint32}  # by bytes of a number


def bit_sums(weights: Parameters, dtype: str) -> BitSums:
    """Of each array, matrices in `dtype`: the sum of its numbers' bits modulo 2**32."""
    sums = jax.jit(lambda tree: jax.tree.map(_sum_on_device, cast_matrices(tree, dtype)))(weights)
    return {name: int(value) for name, value in named_parameters(sums).items()}


def _sum_on_device(x: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])
    return jnp.sum(words, dtype=jnp.uint32)


def has_kept_bits(kept: BaseWeights, name: str, values: np.ndarray) -> bool:
    """Whether an array in host memory has the bits that `describe_base` saw."""
    dtype = "float32" if "float32" in kept else "bfloat16"
    wide = values.astype(np.float32)  # what a cast at once from float16 gives need not be nearest
    seen = wide.astype(jnp.dtype(dtype)) if values.ndim > 1 else wide
    words = np.ascontiguousarray(seen).view(_WORDS[seen.dtype.itemsize])
    return int(words.sum(dtype=np.uint32)) == kept.get(dtype, {}).get(name)


def describe_base(weights: Parameters, dtype: str) -> BaseWeights:
    """What a checkpoint of adapters keeps of the weights beneath them.

    In bfloat16 always, so that weights can be compared in whatever precision a run goes on.

    Args:
        dtype: of computation, that of the matrices.
    """
    return {kind: bit_sums(weights, kind) for kind in dict.fromkeys((dtype, "bfloat16"))}


def check_same_base(kept: BaseWeights, now: BaseWeights, origin: object) -> None:
    """Refuse adapters that were trained on other weights.

    Args:
        kept, now: of `describe_base`.
        origin: where the weights of `now` come from, for the error.

    Raises:
        UserError: naming the first tensor that differs.
    """
    for dtype in kept.keys() & now.keys():
        for name, total in kept[dtype].items():
            if now[dtype].get(name) != total:
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
