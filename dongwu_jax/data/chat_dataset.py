"""Rows of packed conversations, in an order without end."""

import logging
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from dongwu_jax.data.chat_samples import marks_prefix
from dongwu_jax.data.indexed_dataset import IndexedDataset
from dongwu_jax.data.packing import pack
from dongwu_jax.errors import UserError

logger = logging.getLogger(__name__)

Row = dict[str, np.ndarray]


class ChatDataset:
    """Row i holds whole conversations of one epoch; each epoch has an order and a packing of its
    own, drawn from the seed, so that a run can be extended. Safe to share by threads.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        conversations: range,
        length: int,
        seed: int,
        truncate: bool,
        vocab_size: int,
    ) -> None:
        """Open the marks beside the tokens, and choose what fits.

        Args:
            dataset: tokens of conversations, `PREFIX_chat`.
            conversations: numbers of those that are used.
            length: tokens of a row.
            truncate: whether longer conversations are cut at their end, or left out.
            vocab_size: token ids must be below it.

        Raises:
            UserError: there are no marks, or those of another dataset, or nothing fits.
        """
        self._tokens, self._trained = dataset, _marks_of(dataset)
        self._length, self._seed, self._vocab_size = length, seed, vocab_size
        # The last token is only predicted, and the first never.
        self._inputs = np.minimum(dataset.sequence_lengths.astype(np.int64) - 1, length)
        chosen = np.arange(conversations.start, conversations.stop)
        too_long = dataset.sequence_lengths[chosen] - 1 > length
        if not truncate:
            chosen = chosen[~too_long]
        self._chosen = chosen[[self._teaches(number) for number in chosen.tolist()]]
        self._say_what_was_left_out(len(conversations), int(too_long.sum()), truncate)
        self._first_rows = [0]  # of each epoch that has been packed, and of the one after
        self._packed: dict[int, list[list[int]]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Row:
        """int32 tokens, labels, segments and positions, and float32 loss_mask; [length] each.

        Raises:
            UserError: a token id is outside the vocabulary.
        """
        row: Row = {
            name: np.zeros(self._length, np.int32)
            for name in ("tokens", "labels", "segments", "positions")
        }
        row["loss_mask"] = np.zeros(self._length, np.float32)
        start = 0
        for segment, number in enumerate(self._members(index), 1):
            count = int(self._inputs[number])
            tokens = self._checked(number, self._tokens.get(number, 0, count + 1))
            here = slice(start, start + count)
            row["tokens"][here], row["labels"][here] = tokens[:-1], tokens[1:]
            row["loss_mask"][here] = self._trained.get(number, 1, count)
            row["segments"][here], row["positions"][here] = segment, np.arange(count)
            start += count
        return row

    def describe(self, index: int) -> dict[str, Any]:
        """Its dataset, its number there, and the conversations of row `index`."""
        return {
            "dataset": str(self._tokens.prefix),
            "sample": index,
            "conversations": [int(number) for number in self._members(index)],
        }

    def _members(self, index: int) -> Sequence[int]:
        """Numbers of the conversations in row `index`."""
        with self._lock:
            while index >= self._first_rows[-1]:
                self._pack_next()
            epoch = int(np.searchsorted(self._first_rows, index, side="right")) - 1
            if epoch not in self._packed:
                self._packed = {epoch: self._rows_of(epoch)}  # an earlier one, for an evaluation
            return self._packed[epoch][index - self._first_rows[epoch]]

    def _pack_next(self) -> None:
        epoch = len(self._first_rows) - 1
        rows = self._rows_of(epoch)
        self._packed = {number: old for number, old in self._packed.items() if number == epoch - 1}
        self._packed[epoch] = rows
        self._first_rows.append(self._first_rows[-1] + len(rows))

    def _rows_of(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng([self._seed, epoch])
        return pack(self._inputs, random.permutation(self._chosen).tolist(), self._length)

    def _teaches(self, number: int) -> bool:
        """Whether anything is trained of what is kept of a conversation."""
        count = int(self._inputs[number])
        return count > 0 and bool(self._trained.get(number, 1, count).any())

    def _checked(self, number: int, tokens: np.ndarray) -> np.ndarray:
        if tokens.max() >= self._vocab_size:
            raise UserError(
                f"{self._tokens.prefix}: conversation {number} holds token {tokens.max()}, but "
                f"model.vocab_size={self._vocab_size}; it was made with another tokenizer"
            )
        return tokens

    def _say_what_was_left_out(self, count: int, too_long: int, truncate: bool) -> None:
        if too_long:
            verb = "cut to it" if truncate else "left out (data.too_long=truncate cuts them)"
            logger.warning(
                "%s: %d of %d conversations are longer than data.sequence_length=%d and are %s",
                *(self._tokens.prefix, too_long, count, self._length, verb),
            )
        if not len(self._chosen):
            raise UserError(
                f"{self._tokens.prefix}: none of {count} conversations fits into "
                f"data.sequence_length={self._length} and has an answer there; lengthen it"
            )


def _marks_of(dataset: IndexedDataset) -> IndexedDataset:
    marks = IndexedDataset(marks_prefix(dataset.prefix))
    if not np.array_equal(marks.sequence_lengths, dataset.sequence_lengths):
        raise UserError(
            f"{marks.prefix}: belongs to other conversations than {dataset.prefix}; run "
            "tools/preprocess_chat.py again"
        )
    return marks
