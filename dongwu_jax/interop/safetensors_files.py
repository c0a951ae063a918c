"""Safetensors files: read without mapping them into memory, written tensor by tensor.

The format is an 8-byte little-endian header length, a JSON header, then the tensors' bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import ml_dtypes
import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.interop.targets import DTYPES

_DTYPES = {
    code: np.dtype(kind)
    for code, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MOST_AXES, _LARGEST = 32, 1 << 60  # numpy makes no larger arrays, even of no elements
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library


@dataclass(frozen=True)
class SafetensorsArray:
    """One tensor of a file, whose values are read when asked for."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int  # byte of the file
    stop: int

    def read(self) -> np.ndarray:
        """Its values, C-contiguous, by a plain read: mapped pages would count as memory in use.

        Raises:
            UserError: the file cannot be read, or has become shorter.
        """
        values = np.empty(self.shape, self.dtype)
        wanted = values.reshape(-1).view(np.uint8).data
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                found = file.readinto(wanted)
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read: {error.strerror}") from None
        if found != values.nbytes:
            raise UserError(
                f"{self.file}: tensor {self.name} ends after {found} of {values.nbytes} bytes; "
                "the file has changed since it was opened"
            )
        return values


def read_safetensors(path: Path) -> dict[str, SafetensorsArray]:
    """The tensors of a file by name, from its header alone.

    Raises:
        UserError: the file is missing, damaged or truncated, or holds a dtype that is not known.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            header, start = _read_header(file, size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: is not a whole safetensors file: {error}") from None
    header.pop("__metadata__", None)
    try:
        arrays = [_array(path, name, entry, start) for name, entry in header.items()]
        _check_places(arrays, start, size)
    except ValueError as error:
        raise UserError(f"{path}: is not a whole safetensors file: {error}") from None
    return {array.name: array for array in arrays}


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The JSON header, and the byte where the tensors start."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LARGEST_HEADER):
        raise ValueError(f"a header of {length} bytes does not fit into its {size} bytes")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise ValueError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r:.80} stands twice in its header")
    return entries


def _array(path: Path, name: str, entry: Any, data_start: int) -> SafetensorsArray:
    fields = entry if isinstance(entry, dict) else {}
    code, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(code, str) or code not in _DTYPES:
        raise ValueError(f"tensor {name} has dtype {code!r:.80}, known are {', '.join(_DTYPES)}")
    if not _are_sizes(shape) or len(shape) > _MOST_AXES or prod(n or 1 for n in shape) > _LARGEST:
        raise ValueError(f"tensor {name} has shape {shape!r:.80}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name} has data_offsets {offsets!r:.80}")
    dtype, (start, stop) = _DTYPES[code], offsets
    if stop - start != prod(shape) * dtype.itemsize:
        raise ValueError(
            f"tensor {name} has {stop - start} bytes, shape {tuple(shape)!r:.80} of {code} needs "
            f"{prod(shape) * dtype.itemsize}"
        )
    return SafetensorsArray(path, name, tuple(shape), dtype, data_start + start, data_start + stop)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_places(arrays: list[SafetensorsArray], start: int, size: int) -> None:
    """The tensors must fill the file, without overlaps or gaps."""
    end = start
    for array in sorted(arrays, key=lambda array: (array.start, array.stop)):
        if array.start != end:
            raise ValueError(f"tensor {array.name} starts at byte {array.start}, not at {end}")
        end = array.stop
    if end != size:
        raise ValueError(f"its header describes {end} bytes, it has {size}; copy it again")


class SafetensorsWriter:
    """Writes one file: the header at once, then the tensors in order as they come.

    In the file, tensors of wider numbers lie first, as the safetensors library has them: each must
    start at a multiple of its number's size, and gaps are not allowed.
    """

    def __init__(
        self,
        file: BinaryIO,
        tensors: Sequence[tuple[str, tuple[int, ...]]],
        dtype: str,
        dtypes: Mapping[str, np.dtype] | None = None,
    ) -> None:
        """Write the header.

        Args:
            file: empty, open for writing anywhere in it.
            tensors: names and shapes, in the order in which they will come.
            dtype: a key of `DTYPES`, of all tensors but those of `dtypes`.
        """
        self._file = file
        own = dtypes or {}
        arrays = [(name, shape, own.get(name, DTYPES[dtype])) for name, shape in tensors]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name, shape, kind in sorted(arrays, key=lambda array: -array[2].itemsize):
            end = start + prod(shape) * kind.itemsize
            header[name] = {"dtype": _CODES[kind], "shape": shape, "data_offsets": [start, end]}
            start = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        data = 8 + len(text)
        self._waiting = [
            (shape, kind, data + header[name]["data_offsets"][0])
            for name, shape, kind in reversed(arrays)
        ]

    def write(self, values: np.ndarray) -> None:
        """Write the values of the next tensor, in any memory order."""
        shape, dtype, start = self._waiting.pop()
        if values.shape != shape or values.dtype != dtype:
            raise ValueError(f"{values.dtype} {values.shape} came, {dtype} {shape} was announced")
        self._file.seek(start)
        self._file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Check that every announced tensor has come; the file stays open."""
        if self._waiting:
            raise ValueError(f"{len(self._waiting)} tensors were announced and never written")
