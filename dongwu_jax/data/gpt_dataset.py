"""Random access to training samples: windows of tokens from one dataset, and blends of several."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dongwu_jax.data.blending import BlendIndexes
from dongwu_jax.data.gpt_sampling import SampleIndexes
from dongwu_jax.data.indexed_dataset import IndexedDataset
from dongwu_jax.errors import UserError


class SampleSource(Protocol):
    """Samples by number."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> np.ndarray | dict[str, np.ndarray]:
        """Sample `index`: int32 [sequence_length + 1], or a row of a batch by name."""

    def describe(self, index: int) -> dict[str, Any]:
        """Where the tokens of sample `index` lie, JSON-able."""


class SampleOrder(Protocol):
    """Which tokens each sample of one dataset holds."""

    @property
    def num_samples(self) -> int:
        """Number of samples that are defined."""

    def locate(self, index: int) -> tuple[SampleIndexes, int]:
        """The arrays that hold sample `index`, and its number within them."""


class MegatronOrder(NamedTuple):
    """The order of a run whose number of samples is fixed in advance."""

    indexes: SampleIndexes

    @property
    def num_samples(self) -> int:
        """Number of samples in the epochs that the run needs; often more than it asked for."""
        return len(self.indexes.shuffle_index)

    def locate(self, index: int) -> tuple[SampleIndexes, int]:
        """The arrays that hold sample `index`, and its number within them."""
        return self.indexes, index


class GPTDataset:
    """The samples of one dataset; consecutive documents are packed without padding.

    Its length is all the samples its order defines: without end (`sys.maxsize`) in `epoch` order.
    """

    def __init__(self, dataset: IndexedDataset, order: SampleOrder, vocab_size: int) -> None:
        """Combine tokens and order.

        Args:
            dataset: the tokens.
            order: which of them each sample holds.
            vocab_size: token ids must be below it.
        """
        self._dataset = dataset
        self._order = order
        self._vocab_size = vocab_size

    def __len__(self) -> int:
        return self._order.num_samples

    def __getitem__(self, index: int) -> np.ndarray:
        """Read sample `index`: int32 [sequence_length + 1].

        Raises:
            IndexError: there is no such sample.
            UserError: a token id is outside the vocabulary.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        indexes, number = self._order.locate(index)
        pieces = list(indexes.pieces(number, self._dataset.sequence_lengths))
        parts = [self._dataset.get(*piece) for piece in pieces]
        tokens = np.concatenate(parts)
        if tokens.max() >= self._vocab_size or tokens.min() < 0:
            for piece, part in zip(pieces, parts, strict=True):
                self._check_tokens(piece.sequence, part)
        return tokens.astype(np.int32)

    def describe(self, index: int) -> dict[str, Any]:
        """Its dataset, its number there, and the parts of the dataset's sequences it is made of."""
        indexes, number = self._order.locate(index)
        pieces = indexes.pieces(number, self._dataset.sequence_lengths)
        return {
            "dataset": str(self._dataset.prefix),
            "sample": index,
            "pieces": [piece._asdict() for piece in pieces],
        }

    def _check_tokens(self, sequence: int, tokens: np.ndarray) -> None:
        """Name the first token of a sequence that is outside the vocabulary."""
        wrong = tokens[(tokens < 0) | (tokens >= self._vocab_size)]
        if len(wrong):
            raise UserError(
                f"{self._dataset.prefix}: sequence {sequence} holds token {wrong[0]}, but "
                f"model.vocab_size={self._vocab_size}; the data was made with another tokenizer, "
                "or model.vocab_size is too small"
            )


class BlendedDataset:
    """Samples of several datasets, interleaved."""

    def __init__(self, datasets: Sequence[SampleSource], indexes: BlendIndexes) -> None:
        """Combine datasets and the blend that chooses among them."""
        self._datasets = datasets
        self._indexes = indexes

    def __len__(self) -> int:
        return len(self._indexes.dataset_index)

    def __getitem__(self, index: int) -> np.ndarray | dict[str, np.ndarray]:
        """Read sample `index`, as its dataset gives it.

        Raises:
            IndexError: there is no such sample.
            UserError: a token id is outside the vocabulary.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        dataset = self._datasets[self._indexes.dataset_index[index]]
        return dataset[int(self._indexes.dataset_sample_index[index])]

    def describe(self, index: int) -> dict[str, Any]:
        """As its dataset describes sample `index`."""
        dataset = self._datasets[self._indexes.dataset_index[index]]
        return dataset.describe(int(self._indexes.dataset_sample_index[index]))

    def drawn(self, first: int, last: int) -> list[int]:
        """How many of the samples `first` to `last` - 1 come from each dataset."""
        chosen = self._indexes.dataset_index[first:last]
        return np.bincount(chosen, minlength=len(self._datasets)).tolist()


def samples_drawn(source: SampleSource, first: int, last: int) -> list[int]:
    """How many of the samples `first` to `last` - 1 come from each dataset of a run."""
    return source.drawn(first, last) if isinstance(source, BlendedDataset) else [last - first]
