"""Products of activations with weights: as they come, or in 8-bit floating point."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from dongwu_jax.config.sections import PrecisionConfig
from dongwu_jax.models import fp8

Project = Callable[[jax.Array, nnx.Param], jax.Array]
"""([batch, length, in...], [in..., out...]) -> [batch, length, out...]"""


def projections(precision: PrecisionConfig, num_layers: int) -> list[Project]:
    """What multiplies activations with weights in each block."""
    chosen = fp8_layers(precision, num_layers)
    return [project_fp8 if layer in chosen else project for layer in range(num_layers)]


def fp8_layers(precision: PrecisionConfig, num_layers: int) -> range:
    """Numbers of the blocks whose products have 8-bit operands."""
    if precision.matmul != "fp8":
        return range(0)
    return range(precision.fp8_skip_first, num_layers - precision.fp8_skip_last)


def project(x: jax.Array, weight: nnx.Param) -> jax.Array:
    """The product in the operands' own dtype.

    Args:
        x: [batch, length, in...].
        weight: [in..., out...].

    Returns:
        [batch, length, out...].
    """
    return jnp.tensordot(x, weight[...], axes=x.ndim - 2)


def project_fp8(x: jax.Array, weight: nnx.Param) -> jax.Array:
    """The product of operands rounded to 8 bits (see `fp8.py`), shapes as in `project`."""
    return fp8.product(x, weight.get_value())
