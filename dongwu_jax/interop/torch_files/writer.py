"""Writes torch files tensor by tensor, without torch.

The file is a zip archive of uncompressed members: `data.pkl` describes the object, `data/<n>` holds
the values of its n-th tensor, each starting at a multiple of 64 bytes.
"""

from typing import Any, BinaryIO

import numpy as np

from dongwu_jax.interop.torch_files.pickle_writer import (
    GlobalName,
    Instance,
    PendingTensor,
    dump_pickle,
    dump_tensors,
)
from dongwu_jax.interop.torch_files.zip_writer import ZipWriter

__all__ = ["GlobalName", "Instance", "PendingTensor", "TorchFileWriter", "dump_pickle"]


class TorchFileWriter:
    """One torch file being written, from the current position of a file.

    torch.load reads it, with weights_only=True as well. Equal input gives equal bytes.
    """

    def __init__(self, file: BinaryIO, tree: Any):
        """Write the description of the object.

        Args:
            file: open for writing; need not be empty.
            tree: what `dump_pickle` takes, with a `PendingTensor` for each tensor.

        Raises:
            TypeError: the tree holds what cannot be written.
        """
        data, self._pending = dump_tensors(tree)
        self._num_written = 0
        self._archive = ZipWriter(file)
        self._archive.add("archive/data.pkl", memoryview(data))
        self._archive.add("archive/byteorder", memoryview(b"little"))

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
        self._archive.add(f"archive/data/{self._num_written}", flat.view(np.uint8).data)
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
        self._archive.add("archive/version", memoryview(b"3\n"))
        self._archive.close()
