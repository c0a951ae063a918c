"""The `epoch` order: sample i is the same however long the run is.

Every epoch is a Megatron order of its own, drawn from (seed, epoch) and one pass over the data:
all its samples come before any of the next epoch. At most `sequence_length` tokens at the end of
an epoch's stream are left over, other ones each time.
"""

import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from dongwu_jax.data.gpt_sampling import EpochPlan, SampleIndexes, build_indexes
from dongwu_jax.data.index_cache import IndexCache

# Two epochs are in use where one ends and the next begins.
_EPOCHS_IN_MEMORY = 2
# Smaller epochs are built faster than files are opened, and a long run has many of them.
_SMALLEST_CACHED_EPOCH = 1 << 16


class EpochOrder:
    """An endless order of samples; epochs are indexed when first needed. Safe to share by threads.

    Attributes:
        num_samples: `sys.maxsize`: every sample number is defined.
        samples_per_epoch: 0 when the split is too short for a single sample.
    """

    num_samples = sys.maxsize

    def __init__(
        self,
        sequence_lengths: np.ndarray,
        sequences: range,
        sequence_length: int,
        seed: int,
        cache: IndexCache,
        cache_key: Mapping[str, Any],
    ) -> None:
        """Prepare the order of one split.

        Args:
            sequence_lengths: int32 [sequences] of the whole dataset.
            sequences: the sequence numbers of the split.
            sequence_length: input tokens of a sample; a sample has one more.
            seed: of all epochs.
            cache: where large epochs are kept.
            cache_key: identifies the dataset and the split.
        """
        self._sequence_lengths = sequence_lengths
        self._sequences = sequences
        self._sequence_length = sequence_length
        self._seed = seed
        self._cache = cache
        self._cache_key = cache_key
        tokens = sequence_lengths[sequences.start : sequences.stop].sum(dtype=np.int64)
        self.samples_per_epoch = max(0, (int(tokens) - 1) // sequence_length)
        self._epochs: OrderedDict[int, SampleIndexes] = OrderedDict()
        self._lock = threading.Lock()

    def locate(self, index: int) -> tuple[SampleIndexes, int]:
        """The arrays that hold sample `index` (>= 0), and its number within them."""
        epoch, within = divmod(index, self.samples_per_epoch)
        with self._lock:
            if epoch not in self._epochs:
                self._epochs[epoch] = self._load(epoch)
                if len(self._epochs) > _EPOCHS_IN_MEMORY:
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(epoch)
            return self._epochs[epoch], within

    def _load(self, epoch: int) -> SampleIndexes:
        if self.samples_per_epoch < _SMALLEST_CACHED_EPOCH:
            return self._build(epoch)
        key = {
            "kind": "epoch",
            **self._cache_key,
            "sequence_length": self._sequence_length,
            "seed": self._seed,
            "epoch": epoch,
        }
        return SampleIndexes(**self._cache.load_or_build(key, lambda: self._build(epoch)._asdict()))

    def _build(self, epoch: int) -> SampleIndexes:
        bits = np.random.MT19937(np.random.SeedSequence([self._seed, epoch]))
        return build_indexes(
            self._sequence_lengths,
            self._sequences,
            self._sequence_length,
            EpochPlan(1, False),
            np.random.RandomState(bits),
        )
