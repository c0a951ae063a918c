"""From the data section of a run to its train, validation and test samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dongwu_jax.config.sections import BlendEntry, DataConfig
from dongwu_jax.data.blending import BlendIndexes, blend_weights, build_blend
from dongwu_jax.data.chat_dataset import ChatDataset
from dongwu_jax.data.epoch_sampling import EpochOrder
from dongwu_jax.data.fingerprint import content_hash
from dongwu_jax.data.gpt_dataset import (
    BlendedDataset,
    GPTDataset,
    MegatronOrder,
    SampleOrder,
    SampleSource,
)
from dongwu_jax.data.gpt_sampling import SampleIndexes, build_indexes, plan_epochs
from dongwu_jax.data.index_cache import IndexCache
from dongwu_jax.data.indexed_dataset import IndexedDataset
from dongwu_jax.data.splits import Split, split_ranges
from dongwu_jax.errors import UserError

# Megatron builds each dataset of a blend for this much more than the blend will draw from it.
_SURPLUS = 1 + 0.005
_MAX_MEGATRON_SEED = 2**32 - 1


@dataclass(frozen=True)
class Datasets:
    """The samples of one run."""

    train: SampleSource
    validation: SampleSource | None  # None where no samples of it were asked for
    test: SampleSource | None


def build_datasets(
    config: DataConfig,
    train_samples: int,
    validation_samples: int,
    test_samples: int = 0,
    *,
    vocab_size: int,
) -> Datasets:
    """Build what a run reads.

    In `megatron` order the numbers of samples decide which samples those are. Megatron asks for
    train: steps * global batch; validation: (steps // interval + 1) * batches * global batch;
    test: batches * global batch.

    Args:
        config: the data section of the run.
        train_samples: samples the whole run reads, at least 1.
        validation_samples: samples all its evaluations read; 0: no validation.
        test_samples: samples a final test reads; 0: no test.
        vocab_size: every token id must be below it; checked as samples are read.

    Raises:
        UserError: no or damaged data, an empty split that is needed, an impossible setting.
    """

    def build(split: Split, num_samples: int) -> SampleSource | None:
        return build_dataset(config, split, num_samples, vocab_size) if num_samples else None

    return Datasets(
        train=build_dataset(config, "train", train_samples, vocab_size),
        validation=build("validation", validation_samples),
        test=build("test", test_samples),
    )


def build_dataset(
    config: DataConfig, split: Split, num_samples: int, vocab_size: int
) -> SampleSource:
    """Build one split.

    It has at least `num_samples` samples, except in `megatron` order when several datasets have
    no weights: then each is read once, as Megatron does.

    Raises:
        UserError: see `build_datasets`.
    """
    blend, shares = _source(config, split)
    weights = blend_weights(blend, config.order)
    members = [_Member(config, entry, split, shares, vocab_size) for entry in blend]
    if config.order == "megatron":
        if config.seed > _MAX_MEGATRON_SEED:
            raise UserError(
                f"data.seed={config.seed}: order megatron takes seeds up to {_MAX_MEGATRON_SEED}"
            )
        return _in_megatron_order(members, weights, num_samples)
    make = _Member.of_conversations if config.format == "chat" else _Member.in_epoch_order
    datasets: list[SampleSource] = [make(member) for member in members]
    if len(datasets) == 1:
        return datasets[0]
    assert weights is not None  # only megatron order knows datasets without weights
    return _blend(members, datasets, weights, num_samples)


def _in_megatron_order(
    members: list["_Member"], weights: np.ndarray | None, num_samples: int
) -> SampleSource:
    """Size each dataset and the blend as Megatron-LM of 2026 does.

    That of 2023 rounds once and may build a dataset for a sample or two fewer, which changes the
    order only where that saves an epoch.
    """
    if weights is not None:
        needed = [math.ceil(num_samples * weight) for weight in weights.tolist()]
        datasets = [
            member.in_megatron_order(math.ceil(need * _SURPLUS))
            for member, need in zip(members, needed, strict=True)
        ]
        return _blend(members, datasets, weights, sum(needed))
    if len(members) == 1:
        return members[0].in_megatron_order(num_samples)
    datasets = [member.in_megatron_order(None) for member in members]
    sizes = [len(dataset) for dataset in datasets]
    return _blend(members, datasets, sizes, min(num_samples, sum(sizes)))


def _source(config: DataConfig, split: Split) -> tuple[Sequence[BlendEntry], str]:
    """The datasets a split comes from, and how they are divided."""
    if config.validation_blend is None:
        blend, shares = config.blend, config.split
    elif split == "test":
        raise UserError(
            "data.validation_blend leaves no test samples: remove it, so that data.split divides "
            "data.blend, or do without a test"
        )
    else:
        blend = config.blend if split == "train" else config.validation_blend
        shares = "1,0,0" if split == "train" else "0,1,0"
    if not blend:
        field = "blend" if blend is config.blend else "validation_blend"
        raise UserError(f"data.{field} is empty: name at least one dataset prefix")
    return blend, shares


class _Member:
    """One dataset of a blend, limited to a split."""

    def __init__(
        self, config: DataConfig, entry: BlendEntry, split: Split, shares: str, vocab_size: int
    ) -> None:
        self._config = config
        self._vocab_size = vocab_size
        self._dataset = IndexedDataset(entry.prefix)
        self._lengths = self._dataset.sequence_lengths
        self._sequences = _needed_range(self._dataset, split, shares)
        self._where = f"{entry.prefix}: its {split} split"
        if config.validation_blend is None:
            self._where += f" (data.split={shares!r})"
        self.cache = IndexCache(config.index_cache or entry.prefix.parent / "cache" / "dongwu_jax")
        self.key: dict[str, Any] = {
            "dataset": entry.prefix.name,
            "content": content_hash(entry.prefix),
            "sequences": [self._sequences.start, self._sequences.stop],
        }

    def in_epoch_order(self) -> GPTDataset:
        """The samples of this dataset, without end."""
        config = self._config
        order = EpochOrder(
            self._lengths,
            self._sequences,
            config.sequence_length,
            config.seed,
            self.cache,
            self.key,
        )
        if order.samples_per_epoch == 0:
            raise UserError(
                f"{self._where} has {self._count_tokens()} tokens, fewer than one sample of "
                f"data.sequence_length={config.sequence_length} + 1; use more data, give the split "
                "a larger share or shorten the sequence"
            )
        return self._with_order(order)

    def of_conversations(self) -> ChatDataset:
        """Packed conversations, without end.

        Raises:
            UserError: none fits, or their marks are missing or another dataset's.
        """
        config = self._config
        return ChatDataset(
            self._dataset,
            self._sequences,
            config.sequence_length,
            config.seed,
            config.too_long == "truncate",
            self._vocab_size,
        )

    def in_megatron_order(self, num_samples: int | None) -> GPTDataset:
        """At least `num_samples` samples of this dataset; None: one epoch."""
        config, tokens = self._config, self._count_tokens()
        if tokens == 0:
            raise UserError(f"{self._where} has no tokens; use more data or a larger share")
        plan = plan_epochs(tokens, config.sequence_length, num_samples)
        key = {
            "kind": "megatron",
            **self.key,
            "sequence_length": config.sequence_length,
            "seed": config.seed,
            **plan._asdict(),
        }
        arrays = self.cache.load_or_build(
            key,
            lambda: build_indexes(
                self._lengths,
                self._sequences,
                config.sequence_length,
                plan,
                np.random.RandomState(config.seed),
            )._asdict(),
        )
        return self._with_order(MegatronOrder(SampleIndexes(**arrays)))

    def _with_order(self, order: SampleOrder) -> GPTDataset:
        return GPTDataset(self._dataset, order, self._vocab_size)

    def _count_tokens(self) -> int:
        lengths = self._lengths[self._sequences.start : self._sequences.stop]
        return int(lengths.sum(dtype=np.int64))


def _needed_range(dataset: IndexedDataset, split: Split, shares: str) -> range:
    """The sequences of a split that must not be empty. Megatron would loop for ever."""
    if len(dataset) == 0:
        raise UserError(f"{dataset.prefix}: holds no sequences; preprocess the data again")
    sequences = split_ranges(shares, len(dataset))[split]
    if sequences is None:
        raise UserError(
            f"data.split={shares!r} has no share for {split}, but {split} samples are needed; "
            "give it a share, or turn off what reads them"
        )
    if not sequences:
        raise UserError(
            f"{dataset.prefix}: its {split} split is empty, because data.split={shares!r} of "
            f"{len(dataset)} sequences rounds to none; give it a larger share or use more data"
        )
    return sequences


def _blend(
    members: list[_Member], datasets: Sequence[SampleSource], weights: ArrayLike, num_samples: int
) -> BlendedDataset:
    """Interleave datasets by weight."""
    shares = np.asarray(weights, dtype=np.float64)
    key = {"kind": "blend", "weights": shares.tolist(), "num_samples": num_samples}
    arrays = members[0].cache.load_or_build(key, lambda: build_blend(shares, num_samples)._asdict())
    return BlendedDataset(datasets, BlendIndexes(**arrays))
