"""Writing safetensors shards tensor by tensor, so that a large model never has to be in memory.

The format is an 8-byte little-endian header length, a JSON header, then the tensors' bytes.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to write: its place in the file is known before its values are."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def write_safetensors(
    folder: Path, tensors: list[StoredTensor], dtype: str, max_shard_bytes: int
) -> Iterator[int]:
    """Write `model.safetensors`, or shards and their index when one file is too small.

    Args:
        dtype: format of the stored values, a key of `DTYPES`.
        max_shard_bytes: largest size of a file; a tensor larger than that gets its own.

    Yields:
        The bytes of each tensor once it is written.
    """
    shards = _shards(tensors, DTYPES[dtype].itemsize, max_shard_bytes)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        with (folder / file).open("wb") as output:
            yield from _write_shard(output, shard, dtype)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(_num_bytes(t, dtype) for t in tensors)},
            "weight_map": {
                t.name: file for file, shard in zip(files, shards, strict=True) for t in shard
            },
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(
    tensors: list[StoredTensor], itemsize: int, max_shard_bytes: int
) -> list[list[StoredTensor]]:
    shards: list[list[StoredTensor]] = [[]]
    room = max_shard_bytes
    for tensor in tensors:
        size = prod(tensor.shape) * itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= size
    return shards


def _write_shard(output: BinaryIO, shard: list[StoredTensor], dtype: str) -> Iterator[int]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in shard:
        end = start + _num_bytes(tensor, dtype)
        header[tensor.name] = {
            "dtype": _CODES[dtype],
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    output.write(len(text).to_bytes(8, "little") + text)
    for tensor in shard:
        values = np.ascontiguousarray(tensor.read().astype(DTYPES[dtype], copy=False))
        assert values.shape == tensor.shape, (tensor.name, values.shape, tensor.shape)
        output.write(values.reshape(-1).view(np.uint8).data)
        yield values.nbytes


def _num_bytes(tensor: StoredTensor, dtype: str) -> int:
    return prod(tensor.shape) * DTYPES[dtype].itemsize
