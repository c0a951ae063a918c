"""Tensors of a torch file, known by shape and place, read only when asked."""

from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np
from zlib_ng.zlib_ng import crc32

from dongwu_jax.errors import UserError
from dongwu_jax.interop.torch_files.archive import Member

STORAGE_DTYPES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
    "torch.UntypedStorage": np.dtype(np.uint8),
    "torch.storage.UntypedStorage": np.dtype(np.uint8),
}
# Tensors without a storage class of their own lie in untyped storages.
UNTYPED_DTYPES = {
    "torch.uint16": np.dtype(np.uint16),
    "torch.uint32": np.dtype(np.uint32),
    "torch.uint64": np.dtype(np.uint64),
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch.float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "torch.float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "torch.float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}
_MOST_DIMENSIONS = 32
_LARGEST_EXPANSION = 1 << 30  # bytes
_LARGEST_EMPTY = 1 << 62  # bytes without the axes of size 0: numpy refuses larger ones
_CHUNK_BYTES = 1 << 22  # checksummed while it is in the cache


@dataclass(frozen=True)
class Storage:
    """The values that one or several tensors share."""

    member: Member
    dtype: np.dtype


class StoredArray:
    """One tensor of a torch file: reads its own bytes, with plain file reads, when asked.

    Attributes:
        shape: sizes.
        dtype: numpy's dtype; that of ml_dtypes for bfloat16 and float8.
    """

    def __init__(
        self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ):
        """A view of a storage; offset and strides count elements, as torch's do.

        Raises:
            UserError: the view is not within the storage, or absurdly larger than it.
        """
        self.shape, self.dtype = shape, storage.dtype
        self._storage, self._offset = storage, offset
        # The stride of an axis of one element is arbitrary.
        self._strides = tuple(s if n > 1 else 0 for n, s in zip(shape, strides, strict=True))
        self._require_within_storage()

    def __repr__(self) -> str:
        return f"StoredArray(shape={self.shape}, dtype={self.dtype.name})"

    def read(self) -> np.ndarray:
        """The values, C-contiguous, in memory of their own.

        Raises:
            UserError: the file has become shorter, or cannot be read.
        """
        if not prod(self.shape):
            return np.empty(self.shape, self.dtype)
        touched = np.empty(self._extent(), self.dtype)
        self._read_into(touched.view(np.uint8).data)
        if self._is_contiguous():
            return touched.reshape(self.shape)
        strides = [stride * self.dtype.itemsize for stride in self._strides]
        view = np.lib.stride_tricks.as_strided(touched, self.shape, strides, writeable=False)
        return view.copy(order="C")

    def _extent(self) -> int:
        """Elements from the first to the last that the tensor touches."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self._strides, strict=True))

    def _is_contiguous(self) -> bool:
        expected = 1
        for n, stride in zip(reversed(self.shape), reversed(self._strides), strict=True):
            if n > 1 and stride != expected:
                return False
            expected *= n
        return True

    def _read_into(self, target: memoryview) -> None:
        member = self._storage.member
        checksum, done = 0, 0
        try:
            with member.path.open("rb", buffering=0) as file:
                file.seek(member.position + self._offset * self.dtype.itemsize)
                while done < len(target):
                    count = file.readinto(target[done : done + _CHUNK_BYTES])
                    if not count:
                        raise UserError(
                            f"{member.path}: ended within {member.name}; it was changed while "
                            "being read: start again"
                        )
                    checksum = crc32(target[done : done + count], checksum)
                    done += count
        except OSError as error:
            raise UserError(f"{member.path}: cannot be read: {error.strerror}") from error
        if done == member.num_bytes:
            member.require_intact(checksum)

    def _require_within_storage(self) -> None:
        num_bytes, size = self._storage.member.num_bytes, self.dtype.itemsize
        numbers = (self._offset, *self.shape, *self._strides)
        largest = prod(max(n, 1) for n in self.shape[:_MOST_DIMENSIONS]) * size
        if len(self.shape) > _MOST_DIMENSIONS or min(numbers) < 0 or largest > _LARGEST_EMPTY:
            raise UserError(
                f"{self._described()}: has {len(self.shape)} axes (at most {_MOST_DIMENSIONS}), "
                "negative or absurd sizes; the file is damaged: copy it again"
            )
        num_elements = prod(self.shape)
        if not num_elements:
            return
        if (self._offset + self._extent()) * size > num_bytes:
            raise UserError(
                f"{self._described()}: reaches beyond its storage of {num_bytes} bytes; "
                "the file is damaged: copy it again"
            )
        if num_elements * size > max(num_bytes, _LARGEST_EXPANSION):
            raise UserError(
                f"{self._described()}: repeats {num_bytes} bytes to "
                f"{num_elements * size}; the file is damaged: copy it again"
            )

    def _described(self) -> str:
        return (
            f"{self._storage.member.path}: a tensor of shape {self.shape[:_MOST_DIMENSIONS]}, "
            f"strides {self._strides[:_MOST_DIMENSIONS]}, offset {self._offset} in "
            f"{self._storage.member.name}"
        )
