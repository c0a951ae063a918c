"""Writing a torch distributed checkpoint: one `.distcp` file of pieces, and its index.

Every piece is a torch file of its own, written straight to its place; the index is written when all
are there, and the mark of a complete checkpoint last.
"""

import io
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dongwu_jax.interop.megatron.sharded_index import INDEX, Shape
from dongwu_jax.interop.megatron.sharded_tensors import COMPLETE_MARK
from dongwu_jax.interop.torch_files.writer import (
    GlobalName,
    Instance,
    PendingTensor,
    TorchFileWriter,
    dump_pickle,
)
from dongwu_jax.output_files import write_output_file

DATA_FILE = "__0_0.distcp"

_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"
# metadata.json of current Megatron; older versions assume the fields that it lacks.
_BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}


class ShardedTensorsWriter:
    """A checkpoint being written; use it as a context manager, it is complete on leaving."""

    def __init__(self, folder: Path):
        """Create the data file in an existing empty folder."""
        self._folder = folder
        self._file = (folder / DATA_FILE).open("wb")
        self._descriptions: dict[str, Instance] = {}
        self._chunks: dict[str, list[Instance]] = {}
        self._storage: list[tuple[Instance, Instance]] = []

    def __enter__(self) -> "ShardedTensorsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None:
            self._write_index()

    def write(self, key: str, shape: Shape, offsets: Shape, values: np.ndarray) -> None:
        """Write a box of a tensor; the boxes of a tensor must make it up without overlap.

        Args:
            shape: of the whole tensor.
            offsets: of the box within it; `values` has as many dimensions.
        """
        if key not in self._chunks:
            self._chunks[key] = []
            self._descriptions[key] = _tensor_description(shape, values.dtype, self._chunks[key])
        chunk = Instance(
            _torch_class("ChunkStorageMetadata"), (_size(offsets), _size(values.shape))
        )
        self._chunks[key].append(chunk)
        start = self._file.tell()
        writer = TorchFileWriter(self._file, PendingTensor(values.shape, values.dtype))
        writer.write(values)
        writer.close()
        self._record(Instance(_torch_class("MetadataIndex"), (key, offsets)), start)

    def write_object(self, key: str, value: Any) -> None:
        """Write what is not a tensor: a tree without tensors."""
        self._descriptions[key] = Instance(_torch_class("BytesStorageMetadata"))
        start = self._file.tell()
        TorchFileWriter(self._file, [value]).close()  # Megatron keeps each in a list
        self._record(Instance(_torch_class("MetadataIndex"), (key,)), start)

    def _record(self, index: Instance, start: int) -> None:
        length = self._file.tell() - start
        self._storage.append(
            (index, Instance(GlobalName(_FILESYSTEM, "_StorageInfo"), (DATA_FILE, start, length)))
        )

    def _write_index(self) -> None:
        metadata = Instance(
            _torch_class("Metadata"), (self._descriptions, None, dict(self._storage))
        )
        write_output_file(self._folder / INDEX, dump_pickle(metadata))
        write_output_file(self._folder / COMPLETE_MARK, json.dumps(_BACKEND).encode())


def torch_file(tree: Any) -> bytes:
    """A tree without tensors as the bytes of a torch file."""
    file = io.BytesIO()
    TorchFileWriter(file, tree).close()
    return file.getvalue()


def _tensor_description(shape: Shape, dtype: np.dtype, chunks: list[Instance]) -> Instance:
    properties = Instance(_torch_class("TensorProperties"), (GlobalName("torch", dtype.name),))
    return Instance(_torch_class("TensorStorageMetadata"), (properties, _size(shape), chunks))


def _torch_class(name: str) -> GlobalName:
    return GlobalName(_METADATA, name)


def _size(sizes: Shape) -> Instance:
    return Instance(GlobalName("torch", "Size"), (sizes,))
