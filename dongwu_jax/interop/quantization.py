"""Weights in 8 bits: symmetric, one scale for each output channel, rounded to the nearest."""

from typing import Literal, get_args

import ml_dtypes
import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.interop.targets import cast

Quantization = Literal["fp8", "int8"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

QUANTIZED_DTYPES: dict[Quantization, np.dtype] = {
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
    "int8": np.dtype(np.int8),
}
_LARGEST: dict[Quantization, float] = {"fp8": 448.0, "int8": 127.0}
SCALE_DTYPE = np.dtype(ml_dtypes.bfloat16)
_SMALLEST_SCALE = np.float32(ml_dtypes.finfo(SCALE_DTYPE).smallest_normal)  # of a row of zeros


def quantize(
    weight: np.ndarray, quantization: Quantization, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """The 8-bit values whose product with the scales is nearest to a weight.

    Args:
        weight: [out, in] in any floating-point dtype.
        name: of the tensor, for errors.

    Returns:
        The values [out, in] in a dtype of `QUANTIZED_DTYPES`, and the scales bfloat16 [out, 1],
        which are normal numbers.

    Raises:
        UserError: the weight holds a NaN, an infinity, or a value too large for float32.
    """
    weight = cast(weight, "float32", name)
    scale = _scales(weight, _LARGEST[quantization], name)
    scaled = weight / scale.astype(np.float32)  # by what is stored, not by what it was before
    if quantization == "int8":
        np.rint(scaled, out=scaled)
    # The scale is rounded, so that the largest value may lie a little above.
    np.clip(scaled, -_LARGEST[quantization], _LARGEST[quantization], out=scaled)
    return scaled.astype(QUANTIZED_DTYPES[quantization]), scale


def dequantize(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float32 [out, in], exact for scales in bfloat16.

    Args:
        values: [out, in] in a dtype of `QUANTIZED_DTYPES`.
        scale: [out, 1] in any floating-point dtype.
    """
    return values.astype(np.float32) * scale.astype(np.float32)


def _scales(weight: np.ndarray, largest: float, name: str) -> np.ndarray:
    """bfloat16 [out, 1]: what makes the largest magnitude of each row the largest 8-bit value."""
    magnitude = np.maximum(weight.max(axis=1, keepdims=True), -weight.min(axis=1, keepdims=True))
    bad = np.flatnonzero(~np.isfinite(magnitude))
    if bad.size:
        raise UserError(
            f"{name}: row {bad[0]} holds {magnitude[bad[0], 0]:g}, which has no place in 8 bits; "
            "quantize a model whose weights are finite"
        )
    return np.maximum(magnitude / np.float32(largest), _SMALLEST_SCALE).astype(SCALE_DTYPE)
