"""What every writer of a format has in common: a plan of files, then the tensors one by one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NoReturn, Protocol

import ml_dtypes
import numpy as np

from dongwu_jax.errors import UserError

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}

DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"} | {n: n for n in DTYPES}
"""What command lines accept, Megatron's short names included."""

ReadTensor = Callable[[str], np.ndarray]
"""Gives one tensor by our name, in our layout."""

Progress = Callable[[int], None]
"""Told the bytes of each tensor that has been written."""


@dataclass(frozen=True)
class PlannedFile:
    """A weight file to write, known before any value is."""

    path: str  # relative to the target's folder
    tensors: list[tuple[str, tuple[int, ...]]]  # stored name (nested keys joined by /), shape

    dtypes: Mapping[str, np.dtype] = field(default_factory=dict)  # that are not the model's

    def num_bytes(self, dtype: str) -> int:
        """Bytes of its tensors, in a dtype of `DTYPES` unless they have their own."""
        return sum(
            prod(shape) * self.dtypes.get(name, DTYPES[dtype]).itemsize
            for name, shape in self.tensors
        )


class ModelTarget(Protocol):
    """A format, layout and dtype in which a model is to be written."""

    @property
    def dtype(self) -> str:
        """Format of the stored weights, a key of `DTYPES`."""
        ...

    def files(self) -> list[PlannedFile]:
        """The weight files, from sizes alone.

        Raises:
            UserError: the model cannot be laid out in this way.
        """
        ...

    def write(self, folder: Path, read: ReadTensor, progress: Progress) -> None:
        """Write the whole model into an existing empty folder, a few tensors in memory at a time.

        Raises:
            UserError: a value does not fit the dtype, or the model cannot be expressed.
        """
        ...


def cast(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """The values in a dtype of `DTYPES`; nothing finite may become infinite.

    Raises:
        UserError: a value is too large for the dtype.
    """
    target = DTYPES[dtype]
    if values.dtype == target:
        return values
    with np.errstate(over="ignore"):
        converted = values.astype(target)
        if ml_dtypes.finfo(values.dtype).max <= _largest(dtype):
            return converted
        # Much faster than a look at every value, which only a NaN or an infinity makes necessary;
        # numpy is slow in finding the extremes of 16-bit numbers.
        wide = values.astype(np.result_type(values.dtype, np.float32), copy=False)
        extremes = np.array([wide.min(initial=0), wide.max(initial=0)]).astype(target)
    if np.isfinite(extremes).all():
        return converted
    lost = values[np.isinf(converted) & np.isfinite(values)]
    if lost.size:
        _refuse_too_large(float(np.abs(lost).max()), dtype, name)
    return converted


def _refuse_too_large(value: float, dtype: str, name: str) -> NoReturn:
    wide_enough = [other for other in ("bfloat16", "float32") if value <= _largest(other)]
    fix = f"choose {wide_enough[0]}" if wide_enough else "no dtype that can be written holds it"
    raise UserError(
        f"{name}: {value:.6g} is too large for {dtype} (at most {_largest(dtype):.6g}); {fix}"
    )


def _largest(dtype: str) -> float:
    return float(ml_dtypes.finfo(DTYPES[dtype]).max)
