"""Batches for the training step, read ahead by Grain, resumable at any step at no cost."""

from collections.abc import Sequence

import grain
import numpy as np

from dongwu_jax.data.gpt_dataset import SampleSource
from dongwu_jax.data.teacher_cache import TeacherCache
from dongwu_jax.errors import UserError

Batch = dict[str, np.ndarray]

_MAX_THREADS = 16


class BatchLoader:
    """Iterate over this process's part of the global batches `start_step` to `stop_step` - 1.

    Global batch k is samples [k * B, (k + 1) * B) whatever the layout, shaped
    [accumulation, B / accumulation]; `rows` says which part of axis 1 this process supplies. A
    step is found by arithmetic, so resuming skips through nothing. The batches do not depend on
    the number of threads.

    Each batch holds, with shape [accumulation, rows, length]:
        tokens: int32, the input.
        labels: int32, the token that follows each input token.
        loss_mask: float32, 1 where the loss counts. With `eod_mask_loss` it is 0 where the input
            is the end-of-document token: predicting that token is trained, what follows is not.
        segments, positions: int32, of packed conversations: which one, from 1, and 0 for padding;
            and the number of a token within it.
        what a teacher's cache holds of these samples, if there is one.

    For evaluation use a loader of its own, whose steps count validation batches.
    """

    def __init__(
        self,
        dataset: SampleSource,
        *,
        global_batch_size: int,
        accumulation_steps: int,
        rows: Sequence[int],
        eod_token: int,
        eod_mask_loss: bool,
        start_step: int,
        stop_step: int,
        prefetch: int,
        cache: TeacherCache | None = None,
    ) -> None:
        """Start reading ahead from `start_step`.

        Args:
            dataset: the samples.
            global_batch_size: samples in one step, a multiple of `accumulation_steps`.
            accumulation_steps: micro batches in one step.
            rows: rows of a micro batch that this process supplies, in this order.
            eod_token: id of the end-of-document token.
            eod_mask_loss: whether to mask what follows that token.
            start_step: first step, 0 in a fresh run.
            stop_step: first step that is not read.
            prefetch: batches read ahead.
            cache: what a teacher says of the samples, by their numbers.

        Raises:
            UserError: the dataset ends before `stop_step`.
            ValueError: the batch does not divide, or a row is outside a micro batch.
        """
        if global_batch_size % accumulation_steps:
            raise ValueError(
                f"global_batch_size={global_batch_size} is not a multiple of "
                f"accumulation_steps={accumulation_steps}"
            )
        micro_batch = global_batch_size // accumulation_steps
        if len(rows) == 0 or min(rows) < 0 or max(rows) >= micro_batch:
            raise ValueError(f"rows {list(rows)} do not lie in a micro batch of {micro_batch}")
        if stop_step * global_batch_size > len(dataset):
            raise UserError(
                f"the data has {len(dataset)} samples, but {stop_step} steps of "
                f"{global_batch_size} need {stop_step * global_batch_size}; shorten the run, add "
                "data, or give the datasets of data.blend weights so that they are repeated"
            )
        batches = grain.MapDataset.source(
            _BatchSource(
                dataset,
                first_samples=np.arange(accumulation_steps) * micro_batch,
                rows=np.asarray(rows),
                global_batch_size=global_batch_size,
                num_steps=stop_step,
                masked_token=eod_token if eod_mask_loss else None,
                cache=cache,
            )
        )
        options = grain.ReadOptions(
            num_threads=min(prefetch, _MAX_THREADS), prefetch_buffer_size=prefetch
        )
        remaining = batches.slice(slice(start_step, stop_step))
        self._iterator = iter(remaining.to_iter_dataset(options))

    def __iter__(self) -> "BatchLoader":
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        """Stop reading ahead."""
        self._iterator.close()


class _BatchSource:
    """Random access to batches by step, as Grain wants it."""

    def __init__(
        self,
        dataset: SampleSource,
        first_samples: np.ndarray,
        rows: np.ndarray,
        global_batch_size: int,
        num_steps: int,
        masked_token: int | None,
        cache: TeacherCache | None,
    ) -> None:
        self._dataset = dataset
        self._offsets = first_samples[:, None] + rows  # [accumulation, rows] in a global batch
        self._global_batch_size = global_batch_size
        self._num_steps = num_steps
        self._masked_token = masked_token
        self._cache = cache

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> Batch:
        first = int(step) * self._global_batch_size
        numbers = [first + offset for offset in self._offsets.ravel().tolist()]
        samples = [self._sample(number) for number in numbers]
        return {name: self._stacked([sample[name] for sample in samples]) for name in samples[0]}

    def _sample(self, number: int) -> Batch:
        """The arrays of one row of a batch."""
        sample = self._dataset[number]
        if isinstance(sample, dict):  # a row of conversations, which knows what is trained
            return sample
        tokens = sample[:-1]
        loss_mask = np.ones(tokens.shape, dtype=np.float32)
        if self._masked_token is not None:
            loss_mask = (tokens != self._masked_token).astype(np.float32)
        row = {"tokens": tokens, "labels": sample[1:], "loss_mask": loss_mask}
        return row if self._cache is None else row | self._cache.read(number)

    def _stacked(self, samples: list[np.ndarray]) -> np.ndarray:
        """[accumulation, rows, ...] of what each sample has."""
        return np.stack(samples).reshape(*self._offsets.shape, *samples[0].shape)
