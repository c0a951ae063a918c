"""From files of JSON lines to indexed datasets: in parallel, in order, restartable."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dongwu_jax.data.document_encoder import BlockEncoder, EncodedBlock, PreprocessSettings
from dongwu_jax.data.indexed_dataset import bin_path, idx_path
from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter
from dongwu_jax.data.jsonl import LineBlock, read_blocks
from dongwu_jax.data.ordered_workers import ordered_map
from dongwu_jax.data.preprocess_state import (
    PreprocessState,
    load_state,
    run_identity,
    save_state,
    state_path,
)
from dongwu_jax.errors import UserError
from dongwu_jax.progress_bars import ByteProgress

_BAD_LINES_SHOWN = 10
_MIN_BYTES_PER_WORKER = 8 << 20  # for less, starting a process costs more than it saves

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreprocessSummary:
    """What was written, all runs together.

    Attributes:
        prefixes: of the datasets, one per key.
        documents: in each of them.
        tokens: in all of them.
        bad_lines: lines that were skipped.
    """

    prefixes: list[Path]
    documents: int
    tokens: int
    bad_lines: int


class _Source(NamedTuple):
    """A block and which input file it is of."""

    file: int
    block: LineBlock


class _Encoded(NamedTuple):
    """What became of a block, and where the next one starts."""

    documents: EncodedBlock
    file: int
    offset: int
    line: int
    file_bytes_read: int


def preprocess(
    settings: PreprocessSettings,
    inputs: Sequence[Path],
    output_prefix: Path,
    workers: int = 1,
    overwrite: bool = False,
    skip_bad_lines: bool = False,
    log_interval: int = 1000,
    checkpoint_seconds: float = 20.0,
) -> PreprocessSummary:
    """Encode files of JSON lines into `{output_prefix}_{name}` for each of the dataset names.

    Documents keep the order of the inputs, whatever the number of workers. A run that was
    killed goes on where it stood when it is started again with the same settings and inputs.

    Args:
        settings: how lines become tokens.
        inputs: `.jsonl`, `.jsonl.gz` or `.jsonl.zst` files.
        output_prefix: start of the names of the datasets.
        workers: processes that encode, at most; small inputs use fewer.
        overwrite: replace finished outputs; otherwise they are an error.
        skip_bad_lines: leave out lines that are no JSON or lack a key; otherwise stop there.
        log_interval: documents between two lines of progress, where there is no terminal.
        checkpoint_seconds: time after which a killed run loses no work.

    Raises:
        UserError: inputs, tokenizer or outputs are not as they must be.
    """
    encoder = settings.encoder()
    prefixes = _output_prefixes(settings, output_prefix, overwrite)
    identity = run_identity(settings, inputs)
    state_file = state_path(output_prefix)
    state = load_state(state_file, identity) if _partial_outputs(prefixes) else None
    if state is not None:
        _logger.warning("%s: going on after %s documents", output_prefix, state.written[0][1])
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                IndexedDatasetWriter(p, dtype, continue_from=state.written[i] if state else None)
            )
            for i, (p, dtype) in enumerate(zip(prefixes, encoder.dtypes, strict=True))
        ]
        job = _Job(inputs, writers, state, functools.partial(save_state, state_file, identity))
        job.run(encoder, workers, skip_bad_lines, log_interval, checkpoint_seconds)
    state_file.unlink(missing_ok=True)
    documents, tokens = job.counts()
    return PreprocessSummary(prefixes, documents, tokens, job.bad_lines)


class _Job:
    """One run: reads blocks, has them encoded, writes the results in order."""

    def __init__(
        self,
        inputs: Sequence[Path],
        writers: Sequence[IndexedDatasetWriter],
        state: PreprocessState | None,
        save: Callable[[PreprocessState], None],
    ) -> None:
        self._inputs, self._writers, self._save = inputs, writers, save
        self._sizes = [path.stat().st_size for path in inputs]
        self._first = state or PreprocessState(0, 0, 1, 0, [])
        self._reached: tuple[int, int, int] | None = None  # file, offset, line
        self.bad_lines = self._first.bad_lines

    def run(
        self,
        encoder: BlockEncoder,
        workers: int,
        skip_bad_lines: bool,
        log_interval: int,
        checkpoint_seconds: float,
    ) -> None:
        """Do all the work; whatever stops it, what was written before is kept."""
        make_work = functools.partial(_make_work, encoder, skip_bad_lines)
        workers = max(1, min(workers, sum(self._sizes) // _MIN_BYTES_PER_WORKER))
        done = sum(self._sizes[: self._first.file])
        saved_at = time.monotonic()
        documents, tokens = self.counts()
        with ByteProgress(
            "preprocess",
            sum(self._sizes),
            done,
            log_interval,
            documents=documents,
            tokens=tokens,
        ) as progress:
            try:
                results = ordered_map(make_work, self._blocks(), workers)
                with contextlib.closing(results):
                    for result in results:
                        self._write(result)
                        documents, tokens = self.counts()
                        done = sum(self._sizes[: result.file]) + result.file_bytes_read
                        progress.update(done, documents=documents, tokens=tokens)
                        if time.monotonic() - saved_at >= checkpoint_seconds:
                            self._checkpoint()
                            saved_at = time.monotonic()
            finally:
                self._checkpoint()

    def counts(self) -> tuple[int, int]:
        """Documents in each dataset and tokens in all of them."""
        positions = [writer.position for writer in self._writers]
        return positions[0].documents, sum(position.tokens for position in positions)

    def _blocks(self) -> Iterator[_Source]:
        for number in range(self._first.file, len(self._inputs)):
            offset, line = 0, 1
            if number == self._first.file:
                offset, line = self._first.offset, self._first.line
            for block in read_blocks(self._inputs[number], offset, line):
                yield _Source(number, block)

    def _write(self, result: _Encoded) -> None:
        for writer, documents in zip(self._writers, result.documents.by_key, strict=True):
            writer.add_documents(documents.tokens, documents.lengths, documents.sequence_counts)
        for message in result.documents.bad_lines:
            self.bad_lines += 1
            if self.bad_lines <= _BAD_LINES_SHOWN:
                _logger.warning("skipped %s", message)
        self._reached = (result.file, result.offset, result.line)

    def _checkpoint(self) -> None:
        if self._reached is not None:
            positions = [writer.checkpoint() for writer in self._writers]
            self._save(PreprocessState(*self._reached, self.bad_lines, positions))


def _make_work(encoder: BlockEncoder, skip_bad_lines: bool) -> Callable[[_Source], _Encoded]:
    def work(source: _Source) -> _Encoded:
        block = source.block
        documents = encoder.encode_block(block, skip_bad_lines)
        line = block.first_line + block.lines
        return _Encoded(documents, source.file, block.end, line, block.file_bytes_read)

    return work


def _output_prefixes(settings: PreprocessSettings, prefix: Path, overwrite: bool) -> list[Path]:
    prefixes = [Path(f"{prefix}_{name}") for name in settings.dataset_names]
    for file in [path(p) for p in prefixes for path in (bin_path, idx_path)]:
        if file.exists() and not overwrite:
            raise UserError(
                f"{file}: exists already; add --overwrite to replace it, or choose another "
                "--output-prefix"
            )
    return prefixes


def _partial_outputs(prefixes: Sequence[Path]) -> bool:
    """Whether an unfinished dataset of every key is there to be continued."""
    return all(Path(f"{prefix}.bin.partial").exists() for prefix in prefixes)
