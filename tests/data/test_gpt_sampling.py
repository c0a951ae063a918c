"""The Megatron order against golden values, Megatron's own arrays and the closed form."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dongwu_jax.data.gpt_sampling import SampleIndexes, build_indexes, plan_epochs
from dongwu_jax.data.indexed_dataset import IndexedDataset
from dongwu_jax.data.splits import SPLITS, split_ranges

TOY_LENGTHS = np.array([5, 3, 9, 1, 6, 4, 8, 2], dtype=np.int32)


def build(
    lengths: np.ndarray, sequences: range, length: int, num_samples: int | None, seed: int = 1234
) -> SampleIndexes:
    tokens = int(lengths[sequences.start : sequences.stop].sum())
    plan = plan_epochs(tokens, length, num_samples)
    return build_indexes(lengths, sequences, length, plan, np.random.RandomState(seed))


def read(indexes: SampleIndexes, index: int, lengths: np.ndarray) -> list[int]:
    """Token j of sequence q is 100 q + j."""
    return [
        100 * piece.sequence + token
        for piece in indexes.pieces(index, lengths)
        for token in range(piece.offset, piece.offset + piece.length)
    ]


def test_toy_one_epoch() -> None:
    indexes = build(TOY_LENGTHS, range(8), 5, 7)
    assert indexes.document_index.tolist() == [2, 1, 6, 0, 4, 5, 3, 7]
    rows = [(0, 0), (0, 5), (1, 1), (2, 3), (3, 0), (4, 0), (4, 5), (6, 0)]
    assert [tuple(row) for row in indexes.sample_index.tolist()] == rows
    assert indexes.shuffle_index.tolist() == [5, 0, 3, 4, 2, 6, 1]
    assert read(indexes, 0, TOY_LENGTHS) == [400, 401, 402, 403, 404, 405]
    assert read(indexes, 1, TOY_LENGTHS) == [200, 201, 202, 203, 204, 205]
    assert read(indexes, 2, TOY_LENGTHS) == [603, 604, 605, 606, 607, 0]


@pytest.mark.parametrize("num_samples", [12, 14])
def test_toy_two_epochs_together(num_samples: int) -> None:
    indexes = build(TOY_LENGTHS, range(8), 5, num_samples)
    assert indexes.document_index.tolist() == [5, 3, 0, 4, 6, 2, 2, 7, 1, 1, 0, 4, 5, 6, 3, 7]
    rows = "0,0 2,0 3,0 3,5 4,4 5,1 5,6 6,2 6,7 8,1 10,0 11,0 11,5 13,0 13,5 15,1"
    assert [f"{p},{o}" for p, o in indexes.sample_index.tolist()] == rows.split()
    assert indexes.shuffle_index.tolist() == [9, 7, 4, 3, 11, 2, 13, 1, 12, 5, 0, 8, 14, 6, 10]
    assert read(indexes, 0, TOY_LENGTHS) == [101, 102, 100, 101, 102, 0]


def test_toy_last_epoch_apart() -> None:
    indexes = build(TOY_LENGTHS, range(8), 5, 18)
    first = [5, 3, 0, 4, 6, 2, 2, 7, 1, 1, 0, 4, 5, 6, 3, 7]
    assert indexes.document_index.tolist() == [*first, 5, 1, 3, 4, 0, 7, 6, 2]
    first = [4, 7, 1, 10, 13, 3, 8, 12, 11, 5, 14, 2, 6, 9, 0]
    assert indexes.shuffle_index.tolist() == [*first, 19, 16, 21, 20, 17, 18, 15]


@pytest.mark.parametrize(
    ("num_samples", "count", "hashes"),
    [
        (None, 1479, ["866ca01c419842d2", "d0ec83fe96c00bac", "dd4a59eaa4c5dea9"]),
        (1000, 1479, ["866ca01c419842d2", "d0ec83fe96c00bac", "dd4a59eaa4c5dea9"]),
        (1500, 2959, ["70db3291d4df3ba0", "337696173819737f", "8a56d2527b2727cd"]),
        (2000, 2959, ["70db3291d4df3ba0", "337696173819737f", "8a56d2527b2727cd"]),
        (3000, 4438, ["ef7af64f1e772164", "9677942c4119e6a0", "48928ffae091d174"]),
    ],
)
def test_medium(num_samples: int | None, count: int, hashes: list[str]) -> None:
    lengths = (7919 * np.arange(1000) % 397 + 1).astype(np.int32)
    indexes = build(lengths, range(949), 128, num_samples)
    assert len(indexes.shuffle_index) == count
    assert [hashlib.sha256(array.tobytes()).hexdigest()[:16] for array in indexes] == hashes


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        ("s01_single_1epoch_none", [None, None, None]),
        ("s02_single_3epochs_separate", [15000, 700, 20]),
    ],
)
def test_arrays_that_megatron_wrote(shared_data: Path, case: str, sizes: list[int | None]) -> None:
    golden = np.load(shared_data / f"megatron/sampling/{case}.npz")
    dataset = IndexedDataset(shared_data / "megatron/data/out/u16_w1_mixed_text_document")
    ranges = split_ranges("949,50,1", len(dataset))
    for split, name, size in zip(SPLITS, ("train", "valid", "test"), sizes, strict=True):
        sequences = ranges[split]
        assert sequences is not None
        indexes = build(dataset.sequence_lengths, sequences, 128, size)
        for field, array in indexes._asdict().items():
            expected = golden[f"{name}/{field}"]
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=30).filter(any),
    sequence_length=st.integers(1, 20),
    num_samples=st.none() | st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
)
def test_closed_form(
    lengths: list[int], sequence_length: int, num_samples: int | None, seed: int
) -> None:
    array = np.array([7, *lengths, 7], dtype=np.int32)  # the split leaves both ends out
    indexes = build(array, range(1, 1 + len(lengths)), sequence_length, num_samples, seed)
    stream = [100 * q + token for q in indexes.document_index for token in range(array[q])]
    count = len(indexes.shuffle_index)
    assert count == (len(stream) - 1) // sequence_length >= (num_samples or 0)
    assert sorted(indexes.shuffle_index.tolist()) == list(range(count))
    for i, row in enumerate(indexes.shuffle_index.tolist()):
        start = row * sequence_length
        assert read(indexes, i, array) == stream[start : start + sequence_length + 1]


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.RandomState(0).randint(0, 9, 500).astype(np.int32)
    whole = build(lengths, range(500), 7, 900)
    monkeypatch.setattr("dongwu_jax.data.gpt_sampling._BLOCK", 13)
    for one, other in zip(whole, build(lengths, range(500), 7, 900), strict=True):
        np.testing.assert_array_equal(one, other)
