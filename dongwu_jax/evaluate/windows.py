"""Which tokens of a text are predicted from which: the protocols of perplexity.

- "chunked": documents joined, cut into disjoint windows. Every token but the first is predicted
  once, from at most `length` tokens and none before its window.
- "sliding" (Press et al. 2021; Chen et al. 2023): each document by itself, a window of `length`
  tokens moved on by `stride`. The first window scores all it predicts, each other one the `stride`
  tokens that are new, so that each has at least length - stride tokens before it.
- "truncate" (Peng et al. 2023): the first `length` tokens of each document that is long enough for
  every length that is compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Protocol = Literal["chunked", "sliding", "truncate"]


@dataclass(frozen=True)
class Spans:
    """Windows into a stream of tokens, int64 [windows] each.

    Attributes:
        start, stop: a window's tokens; it predicts those at start + 1 to stop.
        scored: the first predicted token that counts.
    """

    start: np.ndarray
    stop: np.ndarray
    scored: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    @property
    def num_scored(self) -> int:
        """Predicted tokens that count, beginning tokens included."""
        return int((self.stop - self.scored + 1).sum())


@dataclass(frozen=True)
class Batch:
    """Some windows, padded.

    Attributes:
        tokens, labels: int32 [windows, length].
        counted: float32 [windows, length]; 1 where the label is scored.
        predicted: tokens that its windows predict, given ones included.
    """

    tokens: np.ndarray
    labels: np.ndarray
    counted: np.ndarray
    predicted: int


def chunked_spans(num_tokens: int, length: int) -> Spans:
    """Disjoint windows over a stream."""
    start = np.arange(0, num_tokens - 1, length, dtype=np.int64)
    return Spans(start, np.minimum(start + length, num_tokens - 1), start + 1)


def sliding_spans(documents: np.ndarray, length: int, stride: int) -> Spans:
    """Overlapping windows over each document.

    Args:
        documents: int64 [documents + 1]; where each begins in the stream, and the stream's end.
        stride: at most `length`.
    """
    spans = []
    for first, end in zip(documents[:-1].tolist(), documents[1:].tolist(), strict=True):
        last = end - 1  # the last token is only predicted
        if last > first:
            stop = np.append(np.arange(first + length, last, stride, dtype=np.int64), last)
            scored = np.append(first, stop[:-1]) + 1
            spans.append((np.maximum(stop - length, first), stop, scored))
    columns = [np.concatenate(column) for column in zip(*spans, strict=True)] if spans else []
    return Spans(*columns) if columns else Spans(*np.empty((3, 0), np.int64))


def truncated_spans(documents: np.ndarray, length: int, longest: int) -> Spans:
    """The first window of each document that has `longest` tokens to predict."""
    start = documents[:-1][np.diff(documents) > longest]
    return Spans(start, start + length, start + 1)


def batches(
    stream: np.ndarray, given: np.ndarray, spans: Spans, rows: int, length: int
) -> Iterator[Batch]:
    """Windows `rows` at a time; the last batch is padded with windows that count nothing.

    Args:
        stream: int32 [tokens].
        given: bool [tokens]; those that are never scored.
    """
    for first in range(0, len(spans), rows):
        tokens, labels = np.zeros((2, rows, length), np.int32)
        counted = np.zeros((rows, length), np.float32)
        for row, index in enumerate(range(first, min(first + rows, len(spans)))):
            start, stop = int(spans.start[index]), int(spans.stop[index])
            size, skipped = stop - start, int(spans.scored[index]) - start - 1
            tokens[row, :size] = stream[start:stop]
            labels[row, :size] = stream[start + 1 : stop + 1]
            counted[row, skipped:size] = ~given[start + 1 + skipped : stop + 1]
        part = slice(first, first + rows)
        yield Batch(tokens, labels, counted, int((spans.stop[part] - spans.scored[part] + 1).sum()))
