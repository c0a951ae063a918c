"""Products of activations with weights: as they come, or in 8-bit floating point."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dongwu_jax.config.sections import PrecisionConfig

Project = Callable[[jax.Array, jax.Array], jax.Array]
"""([batch, length, in...], [in..., out...]) -> [batch, length, out...]"""

_E4M3, _E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2


def projections(precision: PrecisionConfig, num_layers: int) -> list[Project]:
    """What multiplies activations with weights in each block."""
    if precision.matmul != "fp8":
        return [project] * num_layers
    last = num_layers - precision.fp8_skip_last
    return [
        project_fp8 if precision.fp8_skip_first <= layer < last else project
        for layer in range(num_layers)
    ]


def project(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The product in the operands' own dtype.

    Args:
        x: [batch, length, in...].
        weight: [in..., out...].

    Returns:
        [batch, length, out...].
    """
    return jnp.tensordot(x, weight, axes=x.ndim - 2)


def project_fp8(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The product of operands rounded to 8 bits, in both passes.

    Operands become float8_e4m3fn, gradients of the result float8_e5m2 (Micikevicius et al. 2022,
    https://arxiv.org/abs/2209.05433), each divided by a scale of its own so that its largest
    magnitude is just representable (current scaling). Scales are powers of two: dividing by one
    loses nothing. Sums are float32.

    Args:
        x: bfloat16 [batch, length, in...].
        weight: bfloat16 [in..., out...].

    Returns:
        bfloat16 [batch, length, out...].
    """
    batch, length, *inputs = x.shape
    width = math.prod(inputs)
    product = _product_fp8(x.reshape(-1, width), weight.reshape(width, -1))
    return product.reshape(batch, length, *weight.shape[len(inputs) :])


_Quantized = tuple[jax.Array, jax.Array]


@jax.custom_vjp
def _product_fp8(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    return _forward(rows, matrix)[0]


def _forward(rows: jax.Array, matrix: jax.Array) -> tuple[jax.Array, tuple[_Quantized, _Quantized]]:
    residuals = _quantized(rows, _E4M3), _quantized(matrix, _E4M3)
    return _product(*residuals, (1, 0)), residuals


def _backward(
    residuals: tuple[_Quantized, _Quantized], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    rows, matrix = residuals
    narrow = _quantized(gradient, _E5M2)
    return _product(narrow, matrix, (1, 1)), _product(rows, narrow, (0, 0))


_product_fp8.defvjp(_forward, _backward)


def _quantized(x: jax.Array, dtype: jax.typing.DTypeLike) -> _Quantized:
    """`x` divided by a power of two, and that power, in the dtype of `x`."""
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    exponent = jnp.ceil(jnp.log2(jnp.maximum(largest, 1e-30) / float(jnp.finfo(dtype).max)))
    scale = jnp.exp2(exponent).astype(x.dtype)
    return (x / scale).astype(dtype), scale


def _product(a: _Quantized, b: _Quantized, contracted: tuple[int, int]) -> jax.Array:
    """The product of what the 8-bit operands stand for.

    Written as a product of dequantised operands, which XLA computes with the 8-bit matrix units
    where there are any (Hopper and newer), and as it stands elsewhere.
    """
    left, right = (values.astype(scale.dtype) * scale for values, scale in (a, b))
    return jax.lax.dot_general(left, right, (((contracted[0],), (contracted[1],)), ((), ())))
