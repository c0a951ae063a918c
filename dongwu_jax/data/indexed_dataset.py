"""Reader of Megatron's indexed datasets: tokens in `X.bin`, where they lie in `X.idx`.

Index layout, little-endian without padding: 9 bytes magic, u64 version, u8 dtype code, u64 number
of sequences S, u64 length of the document index D, i32 lengths [S], i64 byte offsets [S],
i64 document index [D] and, in multimodal datasets only, i8 modes [S].
"""

import logging
import mmap
import os
import struct
from pathlib import Path

import numpy as np

from dongwu_jax.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}  # 6 and 7 are floating point, and mean different widths in different forks
_OLD_MAGIC = b"TNTIDX\x00\x00"
_SMALL_VOCABULARY = 65500  # below it Megatron's writers choose unsigned 16-bit tokens
_CHECK_BLOCK = 1 << 22  # sequences checked at once, so that checking needs little memory

_logger = logging.getLogger(__name__)


def bin_path(prefix: Path | str) -> Path:
    """The file of tokens of the dataset `prefix`."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: Path | str) -> Path:
    """The index file of the dataset `prefix`."""
    return Path(f"{prefix}.idx")


def token_dtype(vocab_size: int) -> np.dtype:
    """The token dtype Megatron's preprocessing chooses for an unpadded vocabulary size."""
    return np.dtype("<u2") if vocab_size < _SMALL_VOCABULARY else np.dtype("<i4")


class IndexedDataset:
    """Random access to the token sequences of one dataset, without copying.

    Attributes:
        prefix: path without `.bin` / `.idx`.
        dtype: of the tokens.
        sequence_lengths: int32 [sequences], in tokens.
        document_indices: int64 [documents + 1]; document k owns the sequences
            `document_indices[k]` to `document_indices[k + 1]`, possibly none.
        sequence_modes: int8 [sequences] of a multimodal dataset, else None.

    Arrays are read-only views of memory-mapped files. Pickling keeps the prefix only: the other
    process maps the files again, without repeating the full check.
    """

    def __init__(self, prefix: Path | str) -> None:
        """Open and check a dataset.

        Raises:
            UserError: a file is missing, damaged, or the two do not belong together.
        """
        self.prefix = Path(prefix)
        self._open()
        self._check()

    def _open(self) -> None:
        """Map both files, after the checks whose cost does not grow with the dataset."""
        index_file, token_file = idx_path(self.prefix), bin_path(self.prefix)
        index = _map_file(index_file, self.prefix)
        self.dtype, sequences, documents = _read_header(index, index_file)
        size = HEADER.size + 12 * sequences + 8 * documents
        if len(index) not in (size, size + sequences):
            raise UserError(
                f"{index_file}: has {len(index)} bytes, but its header announces {size} "
                f"({size + sequences} if multimodal); the file is damaged or incomplete, "
                "copy or preprocess it again"
            )
        offset = HEADER.size
        self.sequence_lengths = np.frombuffer(index, "<i4", sequences, offset)
        offset += 4 * sequences
        self._byte_offsets = np.frombuffer(index, "<i8", sequences, offset)
        offset += 8 * sequences
        self.document_indices = np.frombuffer(index, "<i8", documents, offset)
        self.sequence_modes: np.ndarray | None = None
        if len(index) > size:
            self.sequence_modes = np.frombuffer(index, "i1", sequences, offset + 8 * documents)
        tokens = _map_file(token_file, self.prefix)
        if len(tokens) % self.dtype.itemsize:
            raise UserError(
                f"{token_file}: {len(tokens)} bytes are no whole number of {self.dtype.name} "
                "tokens; the file is cut short, copy or preprocess it again"
            )
        self._tokens = np.frombuffer(tokens, self.dtype)

    def _check(self) -> None:
        """Check every length, offset and document boundary; Megatron itself does not."""
        index_file = idx_path(self.prefix)
        documents = self.document_indices
        ordered = all(
            bool((np.diff(documents[i : i + _CHECK_BLOCK + 1]) >= 0).all())
            for i in range(0, len(documents), _CHECK_BLOCK)
        )
        if documents[0] != 0 or documents[-1] != len(self) or not ordered:
            raise UserError(
                f"{index_file}: the document index must rise from 0 to the number of sequences "
                f"({len(self)}), but goes from {documents[0]} to {documents[-1]}"
                f"{'' if ordered else ' and falls in between'}; the file is damaged"
            )
        total, offsets_as_expected = 0, True
        for i in range(0, len(self), _CHECK_BLOCK):
            lengths = self.sequence_lengths[i : i + _CHECK_BLOCK]
            self._check_block(i, lengths)
            ends = total + np.cumsum(lengths, dtype=np.int64)
            starts = (ends - lengths) * self.dtype.itemsize
            offsets_as_expected &= np.array_equal(self._byte_offsets[i : i + len(starts)], starts)
            total = int(ends[-1])
        if total != self.num_tokens:
            raise UserError(
                f"{index_file} counts {total} tokens, but {bin_path(self.prefix)} holds "
                f"{self.num_tokens}; the files do not belong together, a copy is incomplete, or "
                "they come from the Megatron versions of July 2023 that did not count "
                "end-of-document tokens; preprocess the data again"
            )
        if not offsets_as_expected:
            _logger.warning(
                "%s: byte offsets are not the running sum of the lengths; they are used as found",
                index_file,
            )

    def _check_block(self, first: int, lengths: np.ndarray) -> None:
        """Check that the sequences from `first` on lie inside the file of tokens."""
        starts = self._byte_offsets[first : first + len(lengths)]
        ends = starts + lengths.astype(np.int64) * self.dtype.itemsize
        bad = (lengths < 0) | (starts < 0) | (ends > self._tokens.nbytes)
        bad |= starts % self.dtype.itemsize != 0
        if bad.any():
            i = int(bad.argmax())
            raise UserError(
                f"{idx_path(self.prefix)}: sequence {first + i} has length {lengths[i]} at byte "
                f"{starts[i]}, which is not inside {bin_path(self.prefix)} "
                f"({self._tokens.nbytes} bytes); one of the two is damaged, cut short or of "
                "another dataset"
            )

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.sequence_lengths)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all sequences."""
        return len(self._tokens)

    def get(self, index: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Tokens of sequence `index` from `offset` on, a read-only view [length].

        Raises:
            IndexError: that part does not lie inside that sequence.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.prefix} has no sequence {index}, only {len(self)}")
        whole = int(self.sequence_lengths[index])
        length = whole - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > whole:
            raise IndexError(
                f"{self.prefix}: sequence {index} has {whole} tokens, not {offset}+{length}"
            )
        start = int(self._byte_offsets[index]) // self.dtype.itemsize + offset
        return self._tokens[start : start + length]

    def __getstate__(self) -> dict[str, Path]:
        return {"prefix": self.prefix}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.prefix = state["prefix"]
        self._open()


def _map_file(path: Path, prefix: Path) -> mmap.mmap | bytes:
    """The bytes of a file, memory-mapped unless empty (which the system cannot map)."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        hint = ""
        if prefix.suffix in (".bin", ".idx"):
            hint = f"; write the path without its ending: {prefix.with_suffix('')}"
        raise UserError(f"{path}: cannot be read: {error.strerror}{hint}") from None


def _read_header(index: mmap.mmap | bytes, path: Path) -> tuple[np.dtype, int, int]:
    """dtype, number of sequences and length of the document index of an index file."""
    if index[: len(_OLD_MAGIC)] == _OLD_MAGIC:
        raise UserError(
            f"{path}: is of Megatron's old 'lazy'/'cached' format; preprocess the data again with "
            "the 'mmap' format"
        )
    if len(index) < HEADER.size or index[: len(MAGIC)] != MAGIC:
        raise UserError(f"{path}: is not an index of a Megatron dataset (wrong first bytes)")
    _, version, code, sequences, documents = HEADER.unpack_from(index)
    if version != VERSION:
        raise UserError(f"{path}: has format version {version}, only {VERSION} is known")
    if code not in DTYPE_CODES:
        raise UserError(
            f"{path}: has dtype code {code}, which is no integer type "
            f"(known: {', '.join(f'{c} {d.name}' for c, d in DTYPE_CODES.items())})"
        )
    if documents < 1:
        raise UserError(f"{path}: has an empty document index; the file is damaged")
    return DTYPE_CODES[code], sequences, documents
