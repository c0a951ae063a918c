"""Writer of Megatron's indexed datasets, in memory that does not grow with the dataset.

Everything streams to files called `X.*.partial`; only a finished dataset gets its real name, the
tokens first and the index last. A checkpointed writer can be continued after the process died.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import numpy as np

from dongwu_jax.data.indexed_dataset import (
    DTYPE_CODES,
    HEADER,
    MAGIC,
    VERSION,
    IndexedDataset,
    bin_path,
    idx_path,
)
from dongwu_jax.errors import UserError

_BLOCK_BYTES = 1 << 24  # copied at once


class WriterPosition(NamedTuple):
    """How much of a dataset is safely on disk."""

    sequences: int
    documents: int
    tokens: int


class IndexedDatasetWriter:
    """Builds the dataset `prefix`: a context manager that finishes it, or leaves nothing.

    With `continue_from`, the position an earlier process's `checkpoint` returned, writing goes on
    from there. Once `checkpoint` was called, the partial files outlive a failure.

    Raises:
        UserError: the files cannot be written, another process is writing this dataset, or
            there is less on disk than `continue_from` says.
    """

    def __init__(
        self,
        prefix: Path | str,
        dtype: np.dtype,
        multimodal: bool = False,
        continue_from: WriterPosition | None = None,
    ) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype)
        self._code = {dtype: code for code, dtype in DTYPE_CODES.items()}[self.dtype]
        self._position = continue_from or WriterPosition(0, 0, 0)
        self._checkpointed = continue_from is not None
        kinds = ["bin", "lengths", "documents"] + ["modes"] * multimodal
        self._files: dict[str, IO[bytes]] = {}
        with self._reporting_failures():
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
            for kind in kinds:
                self._files[kind] = self._partial(kind).open("ab")
                self._lock(self._files[kind])
            self._cut_to(self._position)

    @property
    def position(self) -> WriterPosition:
        """Sequences, documents and tokens written so far."""
        return self._position

    def add_document(self, tokens: np.ndarray | Sequence[int], lengths: Sequence[int]) -> None:
        """Append one document.

        Args:
            tokens: all its tokens [sum of lengths].
            lengths: of its sequences, in tokens; empty for an empty document.
        """
        self.add_documents(np.asarray(tokens), np.asarray(lengths), np.array([len(lengths)]))

    def add_documents(
        self, tokens: np.ndarray, lengths: np.ndarray, sequence_counts: np.ndarray
    ) -> None:
        """Append several documents at once.

        Args:
            tokens: of all documents [sum of lengths].
            lengths: of all sequences [sum of sequence_counts].
            sequence_counts: number of sequences of each document [documents].
        """
        if int(lengths.sum()) != len(tokens) or int(sequence_counts.sum()) != len(lengths):
            raise ValueError("tokens, lengths and sequence_counts do not agree")
        sequences, documents, written = self._position
        with self._reporting_failures():
            self._files["bin"].write(np.ascontiguousarray(tokens, self.dtype).data)
            self._files["lengths"].write(lengths.astype("<i4").data)
            ends = sequences + np.cumsum(sequence_counts, dtype="<i8")
            self._files["documents"].write(ends.data)
        self._position = WriterPosition(
            sequences + len(lengths), documents + len(sequence_counts), written + len(tokens)
        )

    def add_index(
        self, prefix: Path | str, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Append all documents of another dataset; `progress` hears the bytes copied.

        Raises:
            UserError: its dtype differs, or only one of the two is multimodal.
        """
        other = IndexedDataset(prefix)
        if other.dtype != self.dtype:
            raise UserError(
                f"{idx_path(prefix)}: holds {other.dtype.name} tokens, but those before it are "
                f"{self.dtype.name}; they were made with different vocabularies"
            )
        if len(other) and ("modes" in self._files) != (other.sequence_modes is not None):
            raise UserError(
                f"{idx_path(prefix)}: has {'no ' if other.sequence_modes is None else ''}modes of "
                "sequences; multimodal datasets and others cannot be mixed, and need --multimodal"
            )
        sequences, documents, tokens = self._position
        with self._reporting_failures():
            if "modes" in self._files:
                self._write_blocks("modes", other.sequence_modes, "i1")
            self._write_blocks("lengths", other.sequence_lengths, "<i4")
            self._write_blocks("documents", other.document_indices[1:], "<i8", add=sequences)
            with bin_path(prefix).open("rb") as source:
                while block := source.read(_BLOCK_BYTES):
                    self._files["bin"].write(block)
                    progress(len(block))
        self._position = WriterPosition(
            sequences + len(other),
            documents + len(other.document_indices) - 1,
            tokens + other.num_tokens,
        )

    def checkpoint(self) -> WriterPosition:
        """Force everything to disk and return the position to continue from."""
        self._checkpointed = True
        self._flush()
        return self._position

    def __enter__(self) -> "IndexedDatasetWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        finished = False
        try:
            if error is None:
                self._finish()
                finished = True
        finally:
            for file in self._files.values():
                with contextlib.suppress(OSError):
                    file.close()
            if finished or not self._checkpointed:
                self._discard()

    def _discard(self) -> None:
        """Remove the partial files."""
        for kind in ("bin", "lengths", "documents", "modes", "idx"):
            self._partial(kind).unlink(missing_ok=True)

    def _finish(self) -> None:
        """Write the index and give both files their names."""
        self._flush()
        index_file, token_file = idx_path(self.prefix), bin_path(self.prefix)
        with self._reporting_failures():
            with self._partial("idx").open("wb") as index:
                for block in self._index_blocks():
                    index.write(block)
                index.flush()
                os.fsync(index.fileno())
            index_file.unlink(missing_ok=True)  # never an old index beside new tokens
            os.replace(self._partial("bin"), token_file)
            os.replace(self._partial("idx"), index_file)

    def _index_blocks(self) -> Iterator[bytes | memoryview]:
        sequences, documents, _ = self._position
        yield HEADER.pack(MAGIC, VERSION, self._code, sequences, documents + 1)
        yield from _read_blocks(self._partial("lengths"))
        offset = 0
        for block in _read_blocks(self._partial("lengths")):
            lengths = np.frombuffer(block, "<i4")
            ends = offset + np.cumsum(lengths, dtype="<i8") * self.dtype.itemsize
            yield (ends - lengths.astype("<i8") * self.dtype.itemsize).data
            offset = int(ends[-1])
        yield bytes(8)  # the document index starts with 0
        yield from _read_blocks(self._partial("documents"))
        if "modes" in self._files:
            yield from _read_blocks(self._partial("modes"))

    def _write_blocks(self, kind: str, values: np.ndarray | None, dtype: str, add: int = 0) -> None:
        values = np.empty(0, dtype) if values is None else values
        step = _BLOCK_BYTES // 8
        for i in range(0, len(values), step):
            self._files[kind].write(np.add(values[i : i + step], add, dtype=dtype).data)

    def _cut_to(self, position: WriterPosition) -> None:
        """Drop what was written after the last checkpoint."""
        sizes = {
            "bin": position.tokens * self.dtype.itemsize,
            "lengths": 4 * position.sequences,
            "documents": 8 * position.documents,
            "modes": position.sequences,
        }
        for kind, file in self._files.items():
            if os.fstat(file.fileno()).st_size < sizes[kind]:
                raise UserError(
                    f"{self._partial(kind)}: is shorter than the {sizes[kind]} bytes that were "
                    f"written before; delete {self.prefix}*.partial and start again"
                )
            file.truncate(sizes[kind])

    def _flush(self) -> None:
        with self._reporting_failures():
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())

    def _lock(self, file: IO[bytes]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.prefix}: another process is writing this dataset; wait for it, or choose "
                "another output prefix"
            ) from None
        except OSError:
            pass  # a file system without locks

    def _partial(self, kind: str) -> Path:
        return Path(f"{self.prefix}.{kind}.partial")

    @contextlib.contextmanager
    def _reporting_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.prefix}: cannot be written: {error}") from error


def _read_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
