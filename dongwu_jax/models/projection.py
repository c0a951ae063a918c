"""Products of activations with weights: as they come, or in 8-bit floating point."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from dongwu_jax.config.sections import PrecisionConfig
from dongwu_jax.models import fp8
from dongwu_jax.models.adapted_weight import AdaptedWeight, adapter_axes
from dongwu_jax.parallel.weights import gradient_dtype

Project = Callable[[jax.Array, nnx.Param], jax.Array]
"""([batch, length, in...], [in..., out...]) -> [batch, length, out...]"""


def projections(
    precision: PrecisionConfig, num_layers: int, adapted: bool = False
) -> list[Project]:
    """What multiplies activations with weights in each block.

    Args:
        adapted: whether some of the weights have adapters.
    """
    if adapted:
        return [project_adapted] * num_layers
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
    return _times(x, weight[...], gradient_dtype(weight.get_metadata("axes")))


def project_fp8(x: jax.Array, weight: nnx.Param) -> jax.Array:
    """The product of operands rounded to 8 bits (see `fp8.py`), shapes as in `project`."""
    return fp8.product(x, weight.get_value())


def project_adapted(x: jax.Array, weight: nnx.Param) -> jax.Array:
    """The product with a weight and its adapter, if it has one; shapes as in `project`."""
    value = weight.get_value()
    if not isinstance(value, AdaptedWeight):
        return project(x, weight)
    axes = weight.get_metadata("axes")
    down_axes, up_axes = adapter_axes(axes)
    narrow = _times(x, value.down, gradient_dtype(down_axes))
    added = _times(narrow, value.up, gradient_dtype(up_axes))
    return _times(x, value.base, gradient_dtype(axes)) + value.scale * added


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _times(x: jax.Array, weight: jax.Array, summed_dtype: str | None) -> jax.Array:
    return jnp.tensordot(x, weight, axes=x.ndim - 2)


_Operands = tuple[jax.Array, jax.Array]


def _forward(
    x: jax.Array, weight: jax.Array, summed_dtype: str | None
) -> tuple[jax.Array, _Operands]:
    return _times(x, weight, summed_dtype), (x, weight)


def _backward(summed_dtype: str | None, operands: _Operands, gradient: jax.Array) -> _Operands:
    """As differentiation has them, but the weight's comes out of its product in the dtype in which
    devices sum it: XLA leaves out the rounding in between, and with it two passes over memory."""
    x, weight = operands
    inputs = x.ndim - 2
    outputs = tuple(range(2, gradient.ndim)), tuple(range(inputs, weight.ndim))
    of_x = jax.lax.dot_general(gradient, weight, (outputs, ((), ())))
    dtype = jnp.promote_types(weight.dtype, summed_dtype or weight.dtype)
    of_weight = jax.lax.dot_general(
        x, gradient, (((0, 1), (0, 1)), ((), ())), preferred_element_type=dtype
    )
    return of_x, of_weight.astype(weight.dtype)


_times.defvjp(_forward, _backward)
