"""Casting weights: what fits is rounded as numpy does, what does not is an error."""

import ml_dtypes
import numpy as np
import pytest

from dongwu_jax.errors import UserError
from dongwu_jax.interop.targets import cast


@pytest.mark.parametrize(
    ("value", "dtype", "fix"),
    [
        (1e6, "float16", "choose bfloat16"),
        (-65520.0, "float16", "choose bfloat16"),
        (3.4e38, "float16", "choose float32"),
        (3.4e38, "bfloat16", "choose float32"),
        (1e39, "float32", "no dtype"),
    ],
)
@pytest.mark.parametrize("beside", [0.0, np.inf, -np.inf, np.nan])
def test_a_finite_value_never_becomes_infinite(value, dtype, fix, beside):
    with pytest.raises(UserError, match=rf"head: .* is too large for {dtype} .*; {fix}") as error:
        cast(np.array([beside, value]), dtype, "head")
    assert f"{abs(value):.6g}" in str(error.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_infinities_and_nans_stay(dtype):
    values = np.array([np.inf, -np.inf, np.nan, 1.5])
    np.testing.assert_array_equal(cast(values, dtype, "head").astype(np.float64), values)


def test_the_largest_bfloat16_fits():
    largest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    assert float(cast(np.array([largest], np.float32), "bfloat16", "head")[0]) == largest


def test_empty_tensors_are_cast():
    assert cast(np.zeros((0, 3), np.float32), "bfloat16", "head").shape == (0, 3)


def test_bfloat16_values_are_checked_too():
    values = np.array([1.0, 1e30], ml_dtypes.bfloat16)
    assert cast(values, "float32", "head").dtype == np.float32
    with pytest.raises(UserError, match="head: 1.*e\\+30 is too large for float16"):
        cast(values, "float16", "head")
