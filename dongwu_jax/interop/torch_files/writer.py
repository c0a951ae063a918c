"""Writes torch files tensor by tensor, without torch.

The file is a zip archive of uncompressed members: `data.pkl` describes the object, `data/<n>` holds
the values of its n-th tensor, each starting at a multiple of 64 bytes.
"""

import io
import struct
import zipfile
from typing import Any, BinaryIO, cast

import numpy as np

from dongwu_jax.interop.torch_files.pickle_writer import (
    GlobalName,
    Instance,
    PendingTensor,
    dump_pickle,
    dump_tensors,
)

__all__ = ["GlobalName", "Instance", "PendingTensor", "TorchFileWriter", "dump_pickle"]

_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
_ZIP64_FIELD_BYTES = 20
_ZIP64_ABOVE = (1 << 31) - 1  # bytes of a member
_PADDING_FIELD = 0x4246  # the id that torch gives to the padding of a member's header
_CHUNK_BYTES = 1 << 22  # checksummed and written while it is in the cache


class TorchFileWriter:
    """One torch file being written, from the current position of a file.

    torch.load reads it, with weights_only=True as well. Equal input gives equal bytes.
    """

    def __init__(self, file: BinaryIO, tree: Any):
        """Write the description of the object.

        Args:
            file: a seekable file; need not be empty.
            tree: what `dump_pickle` takes, with a `PendingTensor` for each tensor.

        Raises:
            TypeError: the tree holds what cannot be written.
        """
        data, self._pending = dump_tensors(tree)
        self._num_written = 0
        self._archive = _Archive(cast(BinaryIO, _FromHere(file)), "w")
        self._add("data.pkl", memoryview(data))
        self._add("byteorder", memoryview(b"little"))

    def write(self, values: np.ndarray) -> None:
        """Write the next tensor, in the order of the tree.

        Raises:
            ValueError: its shape or dtype is not what the tree promised.
        """
        if self._num_written == len(self._pending):
            raise ValueError(f"all {len(self._pending)} tensors are written already")
        pending = self._pending[self._num_written]
        if values.shape != pending.shape or values.dtype != pending.dtype:
            raise ValueError(
                f"tensor {self._num_written} is {values.dtype}{values.shape}, "
                f"{pending.dtype}{pending.shape} was announced"
            )
        flat = np.ascontiguousarray(values).reshape(-1)
        self._add(f"data/{self._num_written}", flat.view(np.uint8).data)
        self._num_written += 1

    def close(self) -> None:
        """Complete the file, which stays open.

        Raises:
            ValueError: tensors are missing.
        """
        if self._num_written != len(self._pending):
            raise ValueError(
                f"{len(self._pending) - self._num_written} of {len(self._pending)} tensors were "
                "not written"
            )
        self._add("version", memoryview(b"3\n"))
        self._archive.close()

    def _add(self, name: str, data: memoryview) -> None:
        member = zipfile.ZipInfo(f"archive/{name}")
        member.create_system = 0  # the same bytes on every system
        large = data.nbytes > _ZIP64_ABOVE
        start = self._archive.start_dir + _LOCAL_HEADER_BYTES + len(member.filename)
        start += _ZIP64_FIELD_BYTES * large + 4  # the padding's own header
        padding = -start % _ALIGNMENT
        member.extra = struct.pack("<HH", _PADDING_FIELD, padding) + b"Z" * padding
        with self._archive.open(member, "w", force_zip64=large) as output:
            for begin in range(0, data.nbytes, _CHUNK_BYTES):
                output.write(data[begin : begin + _CHUNK_BYTES])


class _Archive(zipfile.ZipFile):
    """A zip archive that stays incomplete when it is abandoned."""

    def __del__(self) -> None:
        """Do not write the directory that would make it look complete."""


class _FromHere(io.RawIOBase):
    """A file whose start is the current position of another."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._start = file.tell()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, whence
        return self._file.seek(self._start + offset) - self._start

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
