"""8-bit products against products of the same rounded numbers, and against exact ones."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dongwu_jax.models.fp8 import QuantizedWeight, product, quantize

RNG = np.random.default_rng(0)


def bfloat16(*shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape) * scale, jnp.bfloat16)


def rounded(x: jax.Array, dtype: type, largest: float) -> np.ndarray:
    """float64: `x` in 8 bits and back, scaled by the smallest power of two that lets it fit."""
    exact = np.asarray(x, np.float64)
    scale = 2.0 ** np.ceil(np.log2(np.abs(exact).max() / largest))
    return (exact / scale).astype(dtype).astype(np.float64) * scale


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
def test_the_largest_number_is_just_representable(scale):
    x = bfloat16(64, 64, scale=scale)
    found = quantize(x)
    assert np.log2(float(found.scale)) % 1 == 0
    values = np.asarray(found.bits).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert 448 / 2 <= np.abs(values).max() <= 448
    back = values * float(found.scale)
    np.testing.assert_allclose(back, rounded(x, ml_dtypes.float8_e4m3fn, 448), rtol=0)


def test_zeros_stay_zeros():
    found = quantize(jnp.zeros((4, 4), jnp.bfloat16))
    assert not np.asarray(found.bits).any()
    assert float(found.scale) > 0


def test_product_and_gradients_are_those_of_the_rounded_operands():
    x, weight, of_result = (
        bfloat16(2, 16, 32),
        bfloat16(32, 4, 8, scale=0.02),
        bfloat16(2, 16, 4, 8),
    )
    found, vjp = jax.vjp(product, x, weight)
    of_x, of_weight = vjp(of_result)
    x8 = rounded(x, ml_dtypes.float8_e4m3fn, 448)
    weight8 = rounded(weight, ml_dtypes.float8_e4m3fn, 448)
    result8 = rounded(of_result, ml_dtypes.float8_e5m2, 57344)
    for ours, exact in (
        (found, np.einsum("btd,dnh->btnh", x8, weight8)),
        (of_x, np.einsum("btnh,dnh->btd", result8, weight8)),
        (of_weight, np.einsum("btd,btnh->dnh", x8, result8)),
    ):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=2**-7, atol=2e-3)
    # And near the exact ones: three bits of mantissa.
    exact = np.einsum("btd,dnh->btnh", np.asarray(x, np.float64), np.asarray(weight, np.float64))
    error = np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact)
    assert 0.01 < error < 0.06


def test_a_weight_rounded_beforehand_gives_the_same_with_a_float32_gradient():
    x, weight = bfloat16(2, 16, 4, 8), bfloat16(4, 8, 32)
    of_result = bfloat16(2, 16, 32)
    found, vjp = jax.vjp(product, x, weight)
    quantized = quantize(weight)

    def beforehand(x, slot):
        return product(x, QuantizedWeight(quantized, slot))

    again, vjp_again = jax.vjp(beforehand, x, jnp.zeros(weight.shape, jnp.float32))
    np.testing.assert_array_equal(found, again)
    (of_x, of_weight), (of_x_again, of_slot) = vjp(of_result), vjp_again(of_result)
    np.testing.assert_array_equal(of_x, of_x_again)
    assert of_slot.dtype == jnp.float32
    np.testing.assert_array_equal(of_slot.astype(jnp.bfloat16), of_weight)
