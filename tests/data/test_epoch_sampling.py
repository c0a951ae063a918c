"""The epoch order: every epoch whole, none mixed, nothing depends on the length of the run."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dongwu_jax.data.epoch_sampling import EpochOrder
from dongwu_jax.data.gpt_sampling import Piece
from dongwu_jax.data.index_cache import IndexCache

LENGTHS = np.random.RandomState(1).randint(0, 40, 100).astype(np.int32)


def make_order(folder: Path, lengths: np.ndarray = LENGTHS, seed: int = 3) -> EpochOrder:
    sequences = range(len(lengths))
    return EpochOrder(lengths, sequences, 16, seed, IndexCache(folder), {"dataset": "test"})


def sample(order: EpochOrder, index: int, lengths: np.ndarray = LENGTHS) -> list[Piece]:
    indexes, number = order.locate(index)
    return list(indexes.pieces(number, lengths))


def tokens(pieces: list[Piece]) -> list[tuple[int, int]]:
    return [(p.sequence, t) for p in pieces for t in range(p.offset, p.offset + p.length)]


def test_an_epoch_is_one_pass_over_the_data(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    count = order.samples_per_epoch
    assert count == (int(LENGTHS.sum()) - 1) // 16
    for epoch in (0, 1, 5):
        seen = Counter(
            token
            for i in range(epoch * count, (epoch + 1) * count)
            for token in tokens(sample(order, i))[:-1]  # inputs; the last token is a label only
        )
        assert set(seen.values()) == {1}
        assert len(seen) == count * 16 > LENGTHS.sum() - 17


def test_epochs_differ_and_seeds_differ(tmp_path: Path) -> None:
    order, other = make_order(tmp_path), make_order(tmp_path, seed=4)
    first = [sample(order, i) for i in range(order.samples_per_epoch)]
    second = [sample(order, i + order.samples_per_epoch) for i in range(order.samples_per_epoch)]
    assert first != second
    assert first != [sample(other, i) for i in range(order.samples_per_epoch)]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=20), st.integers(0, 2**40))
def test_a_sample_does_not_depend_on_what_was_read_before(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    order = make_order(folder, seed=seed)
    for number in numbers:
        assert sample(order, number) == sample(make_order(folder, seed=seed), number)


def test_frozen_order(tmp_path: Path) -> None:
    """These numbers must never change: runs that last months are resumed by them."""
    order = make_order(tmp_path)
    firsts = [sample(order, i)[0] for i in (0, 1, order.samples_per_epoch, 10**9)]
    assert [(p.sequence, p.offset) for p in firsts] == [(39, 21), (63, 21), (95, 16), (56, 16)]


def test_threads_agree(tmp_path: Path) -> None:
    order, numbers = make_order(tmp_path), list(range(0, 3000, 7))
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: sample(order, i), numbers))
    assert together == [sample(make_order(tmp_path), i) for i in numbers]


def test_large_epochs_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = sample(make_order(tmp_path), 500)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("dongwu_jax.data.epoch_sampling._SMALLEST_CACHED_EPOCH", 1)
    assert sample(make_order(tmp_path), 500) == small
    assert len(list(tmp_path.glob("epoch-*.npy"))) == 3
    assert sample(make_order(tmp_path), 500) == small


def test_too_short_for_one_sample(tmp_path: Path) -> None:
    assert make_order(tmp_path, np.array([16], dtype=np.int32)).samples_per_epoch == 0
    assert make_order(tmp_path, np.array([0], dtype=np.int32)).samples_per_epoch == 0
