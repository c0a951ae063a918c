"""8-bit weights: how far they are from the originals."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dongwu_jax.errors import UserError
from dongwu_jax.interop.quantization import (
    QUANTIZATIONS,
    QUANTIZED_DTYPES,
    SCALE_DTYPE,
    dequantize,
    quantize,
)

_LARGEST = {"int8": 127.0, "fp8": 448.0}
_shapes = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)
_weights = arrays.arrays(
    np.float32, _shapes, elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=True)
)
_scales = st.floats(2.0**-20, 2.0**20).map(lambda value: SCALE_DTYPE.type(value))


def _error_bound(weight, values, scale, quantization):
    """Half the distance of neighbouring 8-bit values, where the weight lies."""
    if quantization == "int8":
        return scale / 2 * np.ones_like(weight)
    return np.maximum(np.abs(weight) * 2.0**-4, scale * 2.0**-10)  # normal, subnormal


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@given(_weights)
def test_every_value_is_the_nearest(quantization, weight):
    values, scale = quantize(weight, quantization, "w")
    assert (values.dtype, scale.dtype) == (QUANTIZED_DTYPES[quantization], SCALE_DTYPE)
    assert (values.shape, scale.shape) == (weight.shape, (len(weight), 1))
    found = dequantize(values, scale)
    assert found.dtype == np.float32
    exact, wide = weight.astype(np.float64), scale.astype(np.float64)
    bound = _error_bound(exact, values, wide, quantization)
    assert (np.abs(exact - found) <= bound * (1 + 1e-5) + 1e-44).all()
    assert (np.sign(found) * np.sign(exact) >= 0).all()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@given(data=st.data())
def test_what_8_bits_hold_is_kept(quantization, data):
    """Also when a folder that was read back is quantized again."""
    bits = data.draw(arrays.arrays(np.uint8, _shapes))
    values = bits.view(QUANTIZED_DTYPES[quantization]).astype(np.float32)
    values = np.nan_to_num(values).clip(-127 if quantization == "int8" else -448, None)
    values[:, 0] = _LARGEST[quantization]  # otherwise another scale suits the row better
    scale = np.array([[data.draw(_scales)] for _ in values], SCALE_DTYPE)
    again, same = quantize(dequantize(values, scale), quantization, "w")
    np.testing.assert_array_equal(again.astype(np.float32), values)
    np.testing.assert_array_equal(same, scale)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_rows_of_nothing_or_next_to_nothing(quantization, dtype):
    tiny = np.array([[0.0, -0.0], [1e-40, -1e-42], [6e-8, 0.0], [1.0, 2.0]]).astype(dtype)
    values, scale = quantize(tiny, quantization, "w")
    assert np.isfinite(scale.astype(np.float32)).all()
    assert (scale.astype(np.float32) >= np.finfo(np.float32).smallest_normal).all()
    found = dequantize(values, scale)
    assert not found[0].any()
    np.testing.assert_allclose(found, tiny.astype(np.float32), rtol=2**-4, atol=1e-40)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_what_is_not_finite_is_refused(quantization, value):
    weight = np.ones((3, 4), np.float32)
    weight[2, 1] = value
    with pytest.raises(UserError, match="layers.up: row 2 holds (nan|inf), .* weights are finite"):
        quantize(weight, quantization, "layers.up")


def test_the_largest_values_stay_finite():
    weight = np.array([[np.finfo(np.float32).max, 1.0]], np.float32)
    for quantization in QUANTIZATIONS:
        values, _ = quantize(weight, quantization, "w")
        assert float(values[0, 0]) == _LARGEST[quantization]
