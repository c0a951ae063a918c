"""Perplexity and bits per byte of a model on text, by the protocols of `windows.py`.

Every counted token weighs the same. Beginning tokens are given and not counted; end tokens are.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.scoring import Scorer
from dongwu_jax.evaluate.texts import AnyTokenizer, TokenStream, predicted_bytes, prefix_bytes
from dongwu_jax.evaluate.windows import (
    Protocol,
    Spans,
    batches,
    chunked_spans,
    sliding_spans,
    truncated_spans,
)

logger = logging.getLogger(__name__)

_LARGEST_LOSS = 709.0  # whose exponential is a number
_FIRST_POSITIONS = 64  # positions are told apart in ranges, each twice as long as the one before


def perplexity_of(loss: float) -> float:
    """exp of a loss in nats a token; infinity where that is no number any more."""
    return math.exp(loss) if loss < _LARGEST_LOSS else math.inf


@dataclass(frozen=True)
class PositionLoss:
    """Mean loss at some positions of a window, in nats.

    Attributes:
        first, last: tokens of context, both included.
    """

    first: int
    last: int
    loss: float


@dataclass(frozen=True)
class Task:
    """What to measure: windows of a stream.

    Attributes:
        stride: of the protocol "sliding".
        num_bytes: UTF-8 bytes that the scored tokens spell.
        documents: that scored tokens are of.
    """

    protocol: Protocol
    length: int
    stride: int | None
    spans: Spans
    num_bytes: int
    documents: int


@dataclass(frozen=True)
class Perplexity:
    """What was measured.

    Attributes:
        tokens: predicted tokens that count.
        loss: mean negative log likelihood of a token, in nats.
        by_position: the same by tokens of context; empty for "sliding", where all have many.
        seconds: time of the computation, compilation and reading excluded.
    """

    task: Task
    tokens: int
    loss: float
    by_position: list[PositionLoss]
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp of the loss: the effective number of choices for a token."""
        return perplexity_of(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, unlike perplexity."""
        return self.loss * self.tokens / (self.task.num_bytes * math.log(2))

    @property
    def tokens_per_second(self) -> float:
        """Rate of scoring."""
        return self.tokens / self.seconds


def plan_tasks(
    stream: TokenStream,
    tokenizer: AnyTokenizer,
    protocol: Protocol,
    lengths: list[int],
    stride: int,
) -> list[Task]:
    """A task for each length.

    Raises:
        UserError: no document is long enough for "truncate", none has two tokens for "sliding",
            or its stride would leave tokens out.
    """
    if protocol == "sliding" and stride > min(lengths):
        raise UserError(
            f"--stride {stride}: must be from 1 to the shortest of --lengths, {min(lengths)}"
        )
    tasks = []
    for length in lengths:
        if protocol == "chunked":
            spans = chunked_spans(len(stream.tokens), length)
            num_bytes, documents = predicted_bytes(stream, tokenizer, joined=True), stream.documents
        elif protocol == "sliding":
            spans = sliding_spans(stream.bounds, length, stride)
            num_bytes = predicted_bytes(stream, tokenizer, joined=False)
            documents = stream.documents
        else:
            spans = truncated_spans(stream.bounds, length, max(lengths))
            num_bytes, documents = prefix_bytes(stream, tokenizer, spans), len(spans)
        if not len(spans) or num_bytes < 1:
            longest = int(np.diff(stream.bounds).max()) - 1
            raise UserError(
                f"--protocol {protocol}: the text's longest document has {longest} tokens to "
                f"predict, {max(lengths) if protocol == 'truncate' else 1} are needed; choose "
                "shorter --lengths, or longer documents"
            )
        longest_window = int((spans.stop - spans.start).max())
        if longest_window < length:
            logger.warning(
                "length %d: no document is as long, windows have at most %d tokens",
                *(length, longest_window),
            )
        used = stride if protocol == "sliding" else None
        tasks.append(Task(protocol, length, used, spans, num_bytes, documents))
    return tasks


def measure(
    scorer: Scorer,
    stream: TokenStream,
    task: Task,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Perplexity:
    """Measure a model. Its beginning token is not counted.

    Args:
        progress: called with the number of tokens scored since the last call.
    """
    rows = scorer.rows_for(len(task.spans), task.length)
    scorer.compile(rows, task.length)
    sums, counts = np.zeros((2, task.length))
    start = time.perf_counter()
    for batch in batches(stream.tokens, stream.given, task.spans, rows, task.length):
        losses = scorer(batch.tokens, batch.labels).losses.astype(np.float64)
        sums += (losses * batch.counted).sum(0)
        counts += batch.counted.sum(0)
        progress(batch.predicted)
    seconds = time.perf_counter() - start
    tokens_counted = int(counts.sum())
    if not np.isfinite(sums).all():
        raise UserError(
            f"the model's loss is not a finite number at length {task.length}: its weights are "
            "damaged, or too large for --dtype"
        )
    by_position = [] if task.protocol == "sliding" else _by_position(sums, counts)
    return Perplexity(
        task, tokens_counted, float(sums.sum()) / tokens_counted, by_position, seconds
    )


def _by_position(sums: np.ndarray, counts: np.ndarray) -> list[PositionLoss]:
    found, first, size = [], 0, _FIRST_POSITIONS
    while first < len(sums):
        part = slice(first, min(first + size, len(sums)))
        if counts[part].sum():
            loss = float(sums[part].sum() / counts[part].sum())
            found.append(PositionLoss(part.start + 1, part.stop, loss))
        first, size = part.stop, max(size, part.stop)
    return found
