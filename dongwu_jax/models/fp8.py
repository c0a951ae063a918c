"""Matrix products of operands rounded to 8 bits, in both passes.

Operands become float8_e4m3fn, gradients of the result float8_e5m2 (Micikevicius et al. 2022,
https://arxiv.org/abs/2209.05433), each divided by a scale of its own so that its largest magnitude
is just representable (current scaling). Scales are powers of two: dividing by one loses nothing.
Sums are float32.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

_E4M3, _E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """Numbers in float8_e4m3fn.

    Carried as bytes: what `jax.checkpoint` keeps goes through a reduction of precision that takes
    this format's numbers above 240 for infinite, and not every collective knows the format.
    """

    bits: jax.Array  # uint8
    scale: jax.Array  # scalar, a power of two, in the dtype that the numbers had


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantizedWeight:
    """A weight, rounded once for many products."""

    quantized: Quantized  # [in..., out...]
    # float32 zeros of the same shape that are never read: their gradient is the weight's, which a
    # bfloat16 weight would round.
    gradient_slot: jax.Array


def quantize(x: jax.Array, largest: jax.Array | None = None) -> Quantized:
    """Round numbers to 8 bits.

    Args:
        largest: the greatest magnitude to be represented; None: of `x`.
    """
    values, scale = _scaled(x, _E4M3, largest)
    return Quantized(jax.lax.bitcast_convert_type(values, jnp.uint8), scale)


def largest_magnitude(x: jax.Array) -> jax.Array:
    """Scalar, in the dtype of `x`."""
    return jnp.max(jnp.abs(x))


def product(x: jax.Array, weight: jax.Array | QuantizedWeight) -> jax.Array:
    """bfloat16 [batch, length, in...] times [in..., out...] -> [batch, length, out...]."""
    if isinstance(weight, QuantizedWeight):
        slot, quantized = weight.gradient_slot, weight.quantized
    else:
        slot, quantized = weight, quantize(jax.lax.stop_gradient(weight))
    batch, length, *inputs = x.shape
    width = math.prod(inputs)
    matrix = Quantized(quantized.bits.reshape(width, -1), quantized.scale)
    rows = _rows_times(x.reshape(-1, width), matrix, slot.reshape(width, -1))
    return rows.reshape(batch, length, *slot.shape[len(inputs) :])


@jax.custom_vjp
def _rows_times(rows: jax.Array, matrix: Quantized, slot: jax.Array) -> jax.Array:
    return _forward(rows, matrix, slot)[0]


_Residuals = tuple[Quantized, Quantized, jax.Array]


def _forward(rows: jax.Array, matrix: Quantized, slot: jax.Array) -> tuple[jax.Array, _Residuals]:
    narrow = quantize(rows)
    result = _multiply(_dequantized(narrow), _dequantized(matrix), (1, 0), rows.dtype)
    # Of the slot, only the dtype is wanted: an array of nothing carries it.
    return result, (narrow, matrix, slot[:0])


def _backward(residuals: _Residuals, gradient: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    rows, matrix, slot = residuals
    values, scale = _scaled(gradient, _E5M2, None)
    narrow = values.astype(gradient.dtype) * scale
    of_rows = _multiply(narrow, _dequantized(matrix), (1, 1), gradient.dtype)
    return of_rows, None, _multiply(_dequantized(rows), narrow, (0, 0), slot.dtype)


_rows_times.defvjp(_forward, _backward)


def _scaled(
    x: jax.Array, dtype: jax.typing.DTypeLike, largest: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """`x` over a power of two, in 8 bits, and that power in the dtype of `x`."""
    largest = largest_magnitude(x) if largest is None else largest
    ratio = largest.astype(jnp.float32) / float(jnp.finfo(dtype).max)
    # Exactly: a logarithm rounded down would let the largest number overflow.
    _, exponent = jnp.frexp(jnp.maximum(ratio, 1e-30))
    scale = jnp.ldexp(jnp.float32(1), exponent).astype(x.dtype)
    return (x / scale).astype(dtype), scale


def _dequantized(x: Quantized) -> jax.Array:
    """The numbers, in the dtype that they had."""
    return jax.lax.bitcast_convert_type(x.bits, _E4M3).astype(x.scale.dtype) * x.scale


def _multiply(
    a: jax.Array, b: jax.Array, contracted: tuple[int, int], dtype: jax.typing.DTypeLike
) -> jax.Array:
    """The product of dequantised numbers.

    XLA computes it with the 8-bit matrix units where there are any (Hopper and newer), and as it
    stands elsewhere.
    """
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)
