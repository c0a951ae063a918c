"""Weights in a checkpoint without a model in memory: written and read one array at a time.

Orbax writes its folder as ever, but is given arrays that are read only when their turn comes. They
are stored as uncompressed zarr 3 in the order in which they lie in memory (Hugging Face and
Megatron transpose ours), which makes both directions plain copies of bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  gives numpy the dtype bfloat16
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from dongwu_jax.input_files import read_json_object

_CHUNK_BYTES = 16 * 2**20  # of a file: several are read at once, and hosts read only their part

# As cp: the system writes to the disk when it likes. The index of OCDBT alone is kept in memory.
_CONTEXT = {"file_io_sync": False, "cache_pool#index": {"total_bytes_limit": 100_000_000}}


@dataclass(frozen=True)
class UnreadArray:
    """An array to save whose values are read when it is written."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    written: Callable[[int], None]  # told its bytes


class _OneByOneHandler(ocp.type_handlers.NumpyHandler):
    """Writes each array before it reads the next."""

    async def serialize(
        self,
        values: Sequence[UnreadArray],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[ocp.future.Future]:
        """Write all of them; nothing is left to wait for."""
        context = ts.Context(_CONTEXT)
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            array = value.read()
            if (array.shape, array.dtype) != (value.shape, value.dtype):
                raise ValueError(
                    f"{info.name}: {array.dtype} {array.shape} came, {value.dtype} {value.shape} "
                    "was announced"
                )
            place = _new_array(Path(info.parent_dir), info.name, array)
            try:
                store = await ts.open(place, context=context)
                await store.write(array, can_reference_source_data_indefinitely=True)
            except ValueError as error:  # what TensorStore says of a full disk
                raise OSError(str(error).partition("\n")[0]) from None
            value.written(array.nbytes)
        return []


def unread_arrays_handler() -> ocp.PyTreeCheckpointHandler:
    """The Orbax handler that saves a tree of `UnreadArray`."""
    registry = ocp.type_handlers.create_type_handler_registry((UnreadArray, _OneByOneHandler()))
    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_zarr3=True, use_compression=False, type_handler_registry=registry
    )


@dataclass(frozen=True)
class StoredShape:
    """What is known of an array before its values are read."""

    shape: tuple[int, ...]
    dtype: np.dtype


class ArrayReader:
    """Reads the arrays of one item of a checkpoint, whether written here or by Orbax alone."""

    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        self._in_ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(self._folder)
        self._context = ts.Context(_CONTEXT)

    def describe(self) -> dict[str, StoredShape]:
        """Shape and dtype of every array, by name.

        Raises:
            ValueError, OSError: the files are damaged or missing.
        """
        opened = {name: self._open(name) for name in self._names()}
        found = {name: store.result() for name, store in opened.items()}
        return {
            name: StoredShape(tuple(store.shape), store.dtype.numpy_dtype)
            for name, store in found.items()
        }

    def read(self, name: str) -> np.ndarray:
        """One array, in the dtype and the memory order in which it is stored.

        Raises:
            ValueError, OSError: its files are damaged or missing.
        """
        store = self._open(name).result()
        if store.rank == 0:  # it has neither pieces nor an order
            return store.read().result()
        pieces = store.chunk_layout.read_chunk.shape
        if any(piece > max(size, 1) for piece, size in zip(pieces, store.shape, strict=True)):
            # TensorStore would ask for the memory, and end the process without it.
            raise ValueError(f"{name} of shape {store.shape} is said to lie in pieces of {pieces}")
        order = store.chunk_layout.inner_order
        assert order is not None, "zarr fixes the order"
        return store.transpose(order).read().result().transpose(np.argsort(order))

    def _names(self) -> list[str]:
        if not self._in_ocdbt:
            files = sorted(self._folder.glob("*/zarr.json"))
            for file in files:
                read_json_object(file)  # of other JSON TensorStore ends the process, or later
            return [file.parent.name for file in files]
        keys = ts.KvStore.open(self._ocdbt(""), context=self._context).result().list().result()
        suffix = "/.zarray"
        return [key.removesuffix(suffix) for key in map(bytes.decode, keys) if key.endswith(suffix)]

    def _ocdbt(self, path: str) -> dict[str, Any]:
        return {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{self._folder}/"},
            "path": path,
            "cache_pool": "cache_pool#index",
        }

    def _open(self, name: str) -> ts.Future:
        return ts.open(self._stored_array(name), context=self._context)

    def _stored_array(self, name: str) -> ts.Spec:
        storage: dict[str, Any] = {"driver": "file", "path": f"{self._folder / name}/"}
        if self._in_ocdbt:  # as Orbax writes unless told otherwise
            storage = self._ocdbt(f"{name}/")
        return ts.Spec(
            {
                "driver": "zarr" if self._in_ocdbt else "zarr3",
                "kvstore": storage,
                "open": True,
                "fill_missing_data_reads": False,
            }
        )


def _new_array(folder: Path, name: str, array: np.ndarray) -> ts.Spec:
    """How an array is to be stored: whole but along its outermost dimension in memory."""
    # Outermost first; an axis of one entry lies nowhere in particular and cannot be divided.
    order = sorted(range(array.ndim), key=lambda i: (array.shape[i] == 1, -array.strides[i]))
    chunk = list(array.shape)
    if array.nbytes > _CHUNK_BYTES:
        chunks = -(-array.nbytes // _CHUNK_BYTES)
        chunk[order[0]] = -(-array.shape[order[0]] // chunks)
    return ts.Spec(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder / name}/"},
            "metadata": {
                "shape": array.shape,
                "data_type": array.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
                "codecs": [
                    {"name": "transpose", "configuration": {"order": order}},
                    {"name": "bytes", "configuration": {"endian": "little"}},
                ],
            },
            "create": True,
            "store_data_equal_to_fill_value": True,  # so that a missing file is an error
        }
    )
