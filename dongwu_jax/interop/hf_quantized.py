"""Quantized weights of a Hugging Face folder, read as the numbers that they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.interop.quantization import QUANTIZED_DTYPES, Quantization, dequantize

FLOAT_DTYPES = ("float64", "float32", "bfloat16", "float16")


class StoredTensor(Protocol):
    """A tensor of a file, whose values are read when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the file."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of the values, as in the file."""
        ...

    def read(self) -> np.ndarray:
        """The values."""
        ...


@dataclass(frozen=True)
class QuantizedTensor:
    """8-bit values [out, in] and their scales [out, 1], as one tensor of float32."""

    values: StoredTensor
    scale: StoredTensor
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return self.values.shape

    def read(self) -> np.ndarray:
        """The products, float32 [out, in]."""
        return dequantize(self.values.read(), self.scale.read())


def scale_name(weight: str) -> str:
    """The tensor that holds the scales of a weight."""
    return f"{weight}_scale"


def with_scales(
    stored: Mapping[str, StoredTensor], places: Mapping[str, Path], quantization: Quantization
) -> dict[str, StoredTensor]:
    """The tensors of a folder, where values and scales have become one.

    Args:
        places: the file that holds each tensor.

    Raises:
        UserError: scales are missing, or are not those of output channels.
    """
    joined = dict(stored)
    for name, values in stored.items():
        if values.dtype == QUANTIZED_DTYPES[quantization] and len(values.shape) == 2:
            joined[name] = QuantizedTensor(values, _scale(name, stored, places))
            del joined[scale_name(name)]
    return joined


def _scale(
    name: str, stored: Mapping[str, StoredTensor], places: Mapping[str, Path]
) -> StoredTensor:
    values, scale = stored[name], stored.get(scale_name(name))
    if scale is None:
        raise UserError(
            f"{places[name]}: tensor {name} is stored as {values.dtype.name}, but its "
            f"{scale_name(name)} is missing"
        )
    expected = (values.shape[0], 1)
    if scale.shape != expected or scale.dtype.name not in FLOAT_DTYPES:
        raise UserError(
            f"{places[scale_name(name)]}: tensor {scale_name(name)} is {scale.dtype.name} "
            f"{scale.shape}; only one scale for each output channel, {expected} in "
            f"{', '.join(FLOAT_DTYPES)}, can be read"
        )
    return scale
