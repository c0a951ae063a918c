"""Reading a torch distributed checkpoint ("torch_dist"): tensors in pieces, spread over files.

A piece is a box within the whole tensor; its values are a torch file of their own, embedded in a
`.distcp` file.
"""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object
from dongwu_jax.interop.megatron.sharded_index import INDEX, Chunk, Shape, read_index
from dongwu_jax.interop.torch_files.reader import StoredArray, read_torch_file

Region = tuple[slice, ...]
"""One slice a dimension, start and stop given."""

COMPLETE_MARK = "metadata.json"  # written last


class ShardedTensors:
    """What a torch distributed checkpoint holds; values are read on demand."""

    def __init__(self, folder: Path):
        """Read the index and check that every file is there and long enough.

        Raises:
            UserError: the checkpoint is incomplete, damaged, compressed or of another kind.
        """
        self.folder = folder
        _check_kind(folder)
        self.tensors, self.objects = read_index(folder)
        self._check_files()

    def read(self, key: str, region: Region | None = None) -> np.ndarray:
        """A tensor or a box of it, in memory of its own.

        Raises:
            UserError: a piece is damaged, or the pieces do not make up the box.
        """
        tensor = self.tensors[key]
        box = region or tuple(slice(0, size) for size in tensor.shape)
        shape = tuple(part.stop - part.start for part in box)
        overlaps = [(chunk, _shared(chunk, box)) for chunk in tensor.chunks]
        parts = [(chunk, shared) for chunk, shared in overlaps if shared is not None]
        self._check_coverage(key, [shared for _, shared in parts], box)
        if len(parts) == 1 and parts[0][0].sizes == shape:
            return self._read_chunk(key, parts[0][0])
        values = np.empty(shape, tensor.dtype)
        for chunk, shared in parts:
            whole = self._read_chunk(key, chunk)
            values[_relative(shared, [part.start for part in box])] = whole[
                _relative(shared, chunk.offsets)
            ]
        return values

    def read_object(self, key: str) -> Any:
        """An object that is not a tensor, as inert data.

        Raises:
            UserError: it is damaged.
        """
        piece = self.objects[key]
        found = read_torch_file(piece.file, piece.offset, piece.length)
        return found[0] if isinstance(found, list) and len(found) == 1 else found

    def _read_chunk(self, key: str, chunk: Chunk) -> np.ndarray:
        piece, dtype = chunk.piece, self.tensors[key].dtype
        stored = read_torch_file(piece.file, piece.offset, piece.length)
        if not isinstance(stored, StoredArray):
            raise UserError(
                f"{piece.file}: byte {piece.offset} holds no tensor, {key} was expected there; "
                "copy the file again"
            )
        if stored.shape != chunk.sizes or stored.dtype != dtype:
            raise UserError(
                f"{piece.file}: a piece of {key} has shape {stored.shape} and dtype "
                f"{stored.dtype}, {INDEX} says {chunk.sizes} and {dtype}; copy the checkpoint again"
            )
        return stored.read()

    def _check_coverage(self, key: str, parts: list[Region], box: Region) -> None:
        found, wanted = sum(map(_volume, parts)), _volume(box)
        overlap = any(
            all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))
            for number, one in enumerate(parts)
            for other in parts[:number]
        )
        if found != wanted or overlap:
            state = "overlap" if overlap else f"hold {found} of {wanted} values"
            raise UserError(
                f"{self.folder / INDEX}: the pieces of {key} {state}; the checkpoint is incomplete "
                "or damaged: save or copy it again"
            )

    def _check_files(self) -> None:
        pieces = [chunk.piece for tensor in self.tensors.values() for chunk in tensor.chunks]
        ends: dict[Path, int] = {}
        for piece in pieces + list(self.objects.values()):
            ends[piece.file] = max(ends.get(piece.file, 0), piece.offset + piece.length)
        for file, end in sorted(ends.items()):
            if not file.is_file():
                raise UserError(f"{file}: is missing, {INDEX} refers to it; copy it again")
            if file.stat().st_size < end:
                raise UserError(
                    f"{file}: has {file.stat().st_size} bytes, {INDEX} expects {end} or more; "
                    "the file is truncated: copy it again"
                )


def _check_kind(folder: Path) -> None:
    """Refuse what is incomplete or in another format, by its `metadata.json`."""
    file = folder / COMPLETE_MARK
    if not file.is_file():
        raise UserError(
            f"{file}: is missing; it is written last, so saving this checkpoint was not completed: "
            "take an earlier iteration"
        )
    backend = read_json_object(file).get("sharded_backend")
    if backend is None:
        raise UserError(f"{file}: does not name its sharded_backend; copy it again")
    if backend != "torch_dist":
        raise UserError(
            f"{file}: sharded_backend is {backend!r:.80}, only 'torch_dist' can be read; save the "
            "checkpoint again with --ckpt-format torch_dist"
        )


def _shared(chunk: Chunk, box: Region) -> Region | None:
    """What a chunk holds of a box; None: nothing."""
    bounds = zip(chunk.offsets, chunk.sizes, box, strict=True)
    shared = tuple(slice(max(o, b.start), min(o + s, b.stop)) for o, s, b in bounds)
    return shared if all(part.start < part.stop for part in shared) else None


def _relative(region: Region, origin: Shape | list[int]) -> Region:
    return tuple(
        slice(part.start - start, part.stop - start)
        for part, start in zip(region, origin, strict=True)
    )


def _volume(region: Region) -> int:
    return prod(part.stop - part.start for part in region)
