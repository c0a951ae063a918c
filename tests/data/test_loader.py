"""Batches: the same samples for every layout, exact resume, Megatron's loss mask."""

import sys

import numpy as np
import pytest

from dongwu_jax.data.loader import BatchLoader
from dongwu_jax.errors import UserError

LENGTH = 6
EOD = 3


class CountingSamples:
    """Sample i starts with 10 + i; the rest is small tokens, end-of-document among them."""

    def __init__(self, size: int = sys.maxsize) -> None:
        self.size = size
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> np.ndarray:
        self.reads.append(index)
        rest = np.random.RandomState(index % 1000).randint(0, 5, LENGTH)
        return np.concatenate([[10 + index % 2**30], rest]).astype(np.int32)


def make_loader(dataset: CountingSamples | None = None, **settings: object) -> BatchLoader:
    arguments: dict[str, object] = {
        "global_batch_size": 8,
        "accumulation_steps": 2,
        "rows": range(4),
        "eod_token": EOD,
        "eod_mask_loss": False,
        "start_step": 0,
        "stop_step": 5,
        "prefetch": 2,
    }
    return BatchLoader(dataset or CountingSamples(), **{**arguments, **settings})  # type: ignore[arg-type]


def assert_same(batches: list[dict[str, np.ndarray]], others: list[dict[str, np.ndarray]]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for name in ("tokens", "labels", "loss_mask"):
            np.testing.assert_array_equal(batch[name], other[name])


def test_a_batch_is_a_contiguous_range() -> None:
    for step, batch in enumerate(make_loader()):
        assert batch["tokens"].shape == (2, 4, LENGTH)
        expected = np.stack([CountingSamples()[8 * step + i] for i in range(8)])
        np.testing.assert_array_equal(batch["tokens"].reshape(8, LENGTH), expected[:, :-1])
        np.testing.assert_array_equal(batch["labels"].reshape(8, LENGTH), expected[:, 1:])
        assert (batch["loss_mask"] == 1).all()
        types = {name: array.dtype for name, array in batch.items()}
        assert types == {"tokens": np.int32, "labels": np.int32, "loss_mask": np.float32}
        assert all(array.flags.c_contiguous for array in batch.values())


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_together_read_the_same_batches(processes: int) -> None:
    share = 4 // processes
    parts = [
        list(make_loader(rows=range(rank * share, (rank + 1) * share))) for rank in range(processes)
    ]
    joined = [
        {name: np.concatenate([p[step][name] for p in parts], axis=1) for name in parts[0][step]}
        for step in range(5)
    ]
    assert_same(joined, list(make_loader()))


def test_rows_in_any_order() -> None:
    whole = list(make_loader())
    for batch, picked in zip(whole, make_loader(rows=np.array([3, 0])), strict=True):
        np.testing.assert_array_equal(picked["tokens"], batch["tokens"][:, [3, 0]])


@pytest.mark.parametrize("prefetch", [1, 3, 40])
def test_threads_do_not_change_batches(prefetch: int) -> None:
    assert_same(list(make_loader(prefetch=prefetch, stop_step=20)), list(make_loader(stop_step=20)))


@pytest.mark.parametrize("step", [0, 1, 7, 12])
def test_resume_is_exact(step: int) -> None:
    whole = list(make_loader(stop_step=12))
    assert_same(list(make_loader(stop_step=12, start_step=step)), whole[step:])


def test_resuming_far_on_reads_nothing_before() -> None:
    dataset = CountingSamples()
    step = 10**12
    loader = make_loader(dataset, start_step=step, stop_step=step + 1)
    assert len(list(loader)) == 1
    assert min(dataset.reads) == 8 * step


def test_eod_mask_loss() -> None:
    """The loss of the token after an end-of-document token is left out, not that of the token."""

    class Fixed(CountingSamples):
        def __getitem__(self, index: int) -> np.ndarray:
            return np.array([1, 2, EOD, 4, EOD, 5, EOD], dtype=np.int32)

    masked = next(make_loader(Fixed(), eod_mask_loss=True))["loss_mask"]
    assert masked[0, 0].tolist() == [1, 1, 0, 1, 0, 1]
    plain = next(make_loader(Fixed()))["loss_mask"]
    assert plain[0, 0].tolist() == [1] * LENGTH


def test_errors_of_the_data_arrive_unchanged() -> None:
    class Broken(CountingSamples):
        def __getitem__(self, index: int) -> np.ndarray:
            raise UserError("data: sequence 3 holds token 9")

    with pytest.raises(UserError, match="sequence 3 holds token 9"):
        next(make_loader(Broken()))


def test_data_that_end_too_early() -> None:
    make_loader(CountingSamples(40))
    with pytest.raises(UserError, match="has 39 samples, but 5 steps of 8 need 40"):
        make_loader(CountingSamples(39))


@pytest.mark.parametrize("rows", [[], [-1], [0, 4]])
def test_rows_outside_a_micro_batch(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="micro batch of 4"):
        make_loader(rows=rows)
