"""The index of a torch distributed checkpoint: which file holds which piece of which tensor.

`.metadata` is a pickle of dataclasses of torch; here it is inert data, checked field by field.
"""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.interop.torch_files.reader import Placeholder, read_pickle

Shape = tuple[int, ...]
INDEX = ".metadata"
_FILE_NAME = re.compile(r"[^/\\\0]+")

_DTYPES = {
    f"torch.{name}": np.dtype(dtype)
    for name, dtype in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint8": np.uint8,
        "bool": np.bool_,
    }.items()
}


@dataclass(frozen=True)
class StoredPiece:
    """Bytes of a file that are a torch file of their own."""

    file: Path
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, and where its values are."""

    offsets: Shape
    sizes: Shape
    piece: StoredPiece


@dataclass(frozen=True)
class ShardedTensor:
    """A whole tensor, as the checkpoint describes it."""

    shape: Shape
    dtype: np.dtype | None  # None: a kind that we do not read
    chunks: tuple[Chunk, ...]


def read_index(folder: Path) -> tuple[dict[str, ShardedTensor], dict[str, StoredPiece]]:
    """All tensors, and all other objects, by key.

    Raises:
        UserError: the index is missing or damaged, or a piece lies outside the folder or is
            compressed.
    """
    index = folder / INDEX
    if not index.is_file():
        raise UserError(f"{index}: is missing; copy the whole folder, hidden files included")
    try:
        return _entries(folder, read_pickle(index))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{index}: is not the index of a torch distributed checkpoint "
            f"({type(error).__name__}: {error}); copy the checkpoint again"
        ) from None


def _entries(
    folder: Path, metadata: Any
) -> tuple[dict[str, ShardedTensor], dict[str, StoredPiece]]:
    """As `read_index`; what is no index fails with any error of plain data."""
    fields = _fields(metadata, "Metadata", "state_dict_metadata", "planner_data", "storage_data")
    pieces: dict[tuple[str, Shape | None], StoredPiece] = {}
    for index, stored in fields["storage_data"].items():
        where = _fields(index, "MetadataIndex", "fqn", "offset", "index")
        offset = where.get("offset")
        key = (_text(where["fqn"]), None if offset is None else _shape(offset))
        pieces[key] = _stored_piece(folder, key[0], stored)
    tensors, objects = {}, {}
    for name, described in fields["state_dict_metadata"].items():
        if _class_name(described) == "BytesStorageMetadata":
            objects[_text(name)] = pieces[name, None]
        else:
            tensors[_text(name)] = _sharded_tensor(name, described, pieces)
    return tensors, objects


def _sharded_tensor(
    name: str, described: Any, pieces: dict[tuple[str, Shape | None], StoredPiece]
) -> ShardedTensor:
    fields = _fields(described, "TensorStorageMetadata", "properties", "size", "chunks")
    shape, dtype = _shape(fields["size"]), _dtype(fields["properties"])
    chunks = []
    for chunk in fields["chunks"]:
        box = _fields(chunk, "ChunkStorageMetadata", "offsets", "sizes")
        offsets, sizes = _shape(box["offsets"]), _shape(box["sizes"])
        if any(o + s > whole for o, s, whole in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"{name} of shape {shape} has a piece {sizes} at {offsets}")
        piece = pieces[name, offsets]
        if dtype is not None and prod(sizes) * dtype.itemsize > piece.length:
            raise ValueError(f"{name} has a piece {sizes} in {piece.length} bytes")
        chunks.append(Chunk(offsets, sizes, piece))
    return ShardedTensor(shape, dtype, tuple(chunks))


def _dtype(properties: Any) -> np.dtype | None:
    """The dtype in torch's TensorProperties, whose pickled state is a tuple."""
    if _class_name(properties) != "TensorProperties":
        raise TypeError(f"{properties!r} stands where TensorProperties belongs")
    values = properties.state if isinstance(properties.state, tuple) else properties.arguments
    return _DTYPES.get(values[0].name)


def _stored_piece(folder: Path, name: str, stored: Any) -> StoredPiece:
    fields = _fields(stored, "_StorageInfo", "relative_path", "offset", "length")
    file, offset, length = _text(fields["relative_path"]), fields["offset"], fields["length"]
    if not _FILE_NAME.fullmatch(file) or file in (".", ".."):
        raise UserError(
            f"{folder / INDEX}: {name} is said to be in {file!r}, which is not a file of this "
            "folder; refused"
        )
    if not (_is_size(offset) and _is_size(length)):
        raise ValueError(f"{name} lies at {offset!r}, {length!r} bytes")
    if fields.get("transform_descriptors"):
        raise UserError(
            f"{folder / INDEX}: {name} is compressed ({fields['transform_descriptors']}), which "
            "cannot be read; save the checkpoint without compression"
        )
    return StoredPiece(folder / file, offset, length)


def _fields(instance: Any, name: str, *positions: str) -> dict[str, Any]:
    """Fields of a dataclass that was pickled by its state or by its constructor's arguments."""
    if _class_name(instance) != name:
        raise TypeError(f"{_class_name(instance)} stands where {name} belongs")
    return dict(zip(positions, instance.arguments, strict=False)) | (instance.state or {})


def _class_name(instance: Any) -> str:
    if not isinstance(instance, Placeholder):
        raise TypeError(f"{type(instance).__name__} stands where a description belongs")
    return instance.name.rpartition(".")[2]


def _shape(value: Any) -> Shape:
    """A torch.Size."""
    sizes = value.arguments[0] if isinstance(value, Placeholder) else value
    if not isinstance(sizes, tuple | list) or not all(map(_is_size, sizes)):
        raise TypeError(f"{sizes!r} stands where sizes belong")
    return tuple(sizes)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} stands where a name belongs")
    return value
