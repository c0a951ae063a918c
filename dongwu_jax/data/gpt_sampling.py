"""The Megatron-LM order of one dataset: which tokens sample i holds, for a seed and a length.

All sequences of a split, repeated for as many epochs as needed and shuffled, form one stream of
tokens F. Row j of the unshuffled samples is F[j*s : j*s + s + 1], so neighbours share one token;
a second shuffle orders the rows. `RandomState` is used because its stream is frozen for ever and
is the one Megatron draws from.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Entries of document_index located at once: bounds the working memory to about 0.5 GB.
_BLOCK = 1 << 24


class Piece(NamedTuple):
    """`length` tokens of one sequence from `offset` on."""

    sequence: int
    offset: int
    length: int


class SampleIndexes(NamedTuple):
    """The three arrays that define an order; bytes equal to Megatron's.

    Memory: 4 bytes for each sequence and epoch, 12 bytes for each sample. Measured: one epoch of
    100 million sequences (12 million samples) takes 24 s to build on one core of a busy machine,
    with 0.9 GB beyond the lengths.
    """

    document_index: np.ndarray  # int32 [epochs * sequences]: sequence numbers in stream order
    sample_index: np.ndarray  # int32 or int64 [samples + 1, 2]: (position above, token offset)
    shuffle_index: np.ndarray  # uint32 or int64 [samples]: row of sample_index of each sample

    def pieces(self, index: int, sequence_lengths: np.ndarray) -> Iterator[Piece]:
        """The parts of sequences that make up sample `index`, in order, zero-length ones skipped.

        Args:
            index: sample number, in [0, samples).
            sequence_lengths: int32 [sequences] of the whole dataset.
        """
        row = int(self.shuffle_index[index])
        (first, offset), (last, end) = self.sample_index[row : row + 2].tolist()
        for position in range(first, last + 1):
            sequence = int(self.document_index[position])
            stop = end + 1 if position == last else int(sequence_lengths[sequence])
            if stop > offset:
                yield Piece(sequence, offset, stop - offset)
            offset = 0


class EpochPlan(NamedTuple):
    """How often the data is repeated, and whether the last epoch is shuffled on its own."""

    epochs: int
    separate_last_epoch: bool


def plan_epochs(
    tokens_per_epoch: int, sequence_length: int, num_samples: int | None = None
) -> EpochPlan:
    """Epochs that yield at least `num_samples` samples; None: one epoch.

    Megatron keeps the last epoch apart when less than 80% of it is needed.

    Args:
        tokens_per_epoch: tokens of the split, at least 1.
    """
    if num_samples is None:
        return EpochPlan(1, False)
    epochs = max(1, -(-(num_samples * sequence_length + 1) // tokens_per_epoch))
    if epochs == 1:
        return EpochPlan(1, False)
    before_last = _count_samples(tokens_per_epoch * (epochs - 1), sequence_length)
    per_epoch = _count_samples(tokens_per_epoch, sequence_length)
    return EpochPlan(epochs, num_samples - before_last < int(0.80 * per_epoch))


def build_indexes(
    sequence_lengths: np.ndarray,
    sequences: range,
    sequence_length: int,
    plan: EpochPlan,
    rng: np.random.RandomState,
) -> SampleIndexes:
    """Build the order of one split.

    Args:
        sequence_lengths: int32 [sequences] of the whole dataset.
        sequences: the sequence numbers of the split; at least one holds a token.
        sequence_length: input tokens of a sample; a sample has one more.
        plan: from `plan_epochs`.
        rng: freshly seeded; documents are drawn first, then samples.
    """
    split_lengths = sequence_lengths[sequences.start : sequences.stop]
    tokens_per_epoch = int(split_lengths.sum(dtype=np.int64))
    num_samples = _count_samples(tokens_per_epoch * plan.epochs, sequence_length)
    document_index = _build_document_index(sequences, plan, rng)
    sample_index = _build_sample_index(
        sequence_lengths, document_index, sequence_length, num_samples
    )
    samples_before_last = (
        _count_samples(tokens_per_epoch * (plan.epochs - 1), sequence_length)
        if plan.separate_last_epoch
        else num_samples
    )
    shuffle_index = _build_shuffle_index(samples_before_last, num_samples, rng)
    return SampleIndexes(document_index, sample_index, shuffle_index)


def _count_samples(num_tokens: int, sequence_length: int) -> int:
    return (num_tokens - 1) // sequence_length


def _build_document_index(
    sequences: range, plan: EpochPlan, rng: np.random.RandomState
) -> np.ndarray:
    """Shuffle all epochs together, or all but the last and then the last."""
    one_epoch = np.arange(sequences.start, sequences.stop, dtype=np.int32)
    document_index = np.tile(one_epoch, plan.epochs)
    boundary = len(document_index) - (len(one_epoch) if plan.separate_last_epoch else 0)
    rng.shuffle(document_index[:boundary])
    if plan.separate_last_epoch:
        rng.shuffle(document_index[boundary:])
    return document_index


def _build_sample_index(
    sequence_lengths: np.ndarray,
    document_index: np.ndarray,
    sequence_length: int,
    num_samples: int,
) -> np.ndarray:
    """Find the sequence that holds token `row * sequence_length` of the stream, for every row.

    Row 0 is (0, 0) even when the first sequence is empty, as in Megatron.
    """
    fits = len(document_index) <= np.iinfo(np.int32).max
    sample_index = np.zeros((num_samples + 1, 2), dtype=np.int32 if fits else np.int64)
    row, tokens_before = 1, 0
    for start in range(0, len(document_index), _BLOCK):
        lengths = sequence_lengths[document_index[start : start + _BLOCK]]
        ends = np.cumsum(lengths, dtype=np.int64)
        ends += tokens_before
        tokens_before = int(ends[-1])
        next_row = max(row, min(num_samples, (tokens_before - 1) // sequence_length) + 1)
        tokens = np.arange(row, next_row, dtype=np.int64) * sequence_length
        positions = np.searchsorted(ends, tokens, side="right")
        sample_index[row:next_row, 0] = start + positions
        sample_index[row:next_row, 1] = tokens - (ends[positions] - lengths[positions])
        row = next_row
    return sample_index


def _build_shuffle_index(
    samples_before_last: int, num_samples: int, rng: np.random.RandomState
) -> np.ndarray:
    """Shuffle the rows before the last epoch and those of the last epoch apart."""
    fits = num_samples < np.iinfo(np.uint32).max - 1
    shuffle_index = np.arange(num_samples, dtype=np.uint32 if fits else np.int64)
    rng.shuffle(shuffle_index[:samples_before_last])
    if samples_before_last < num_samples:
        rng.shuffle(shuffle_index[samples_before_last:])
    return shuffle_index
