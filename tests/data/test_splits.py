"""Splits against Megatron's table and its documented rounding."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dongwu_jax.data.splits import split_ranges
from dongwu_jax.errors import UserError


@pytest.mark.parametrize(
    ("num_sequences", "bounds"),
    [
        (1000, (0, 949, 999, 1000)),
        (999, (0, 948, 998, 999)),
        (1500, (0, 1424, 1498, 1500)),
        (37, (0, 35, 37, 37)),
    ],
)
def test_megatron_table(num_sequences: int, bounds: tuple[int, ...]) -> None:
    ranges = split_ranges("949,50,1", num_sequences)
    assert list(ranges.values()) == [range(low, high) for low, high in itertools.pairwise(bounds)]


def test_missing_and_zero_shares_are_none() -> None:
    assert split_ranges("99,1,0", 200) == {
        "train": range(198),
        "validation": range(198, 200),
        "test": None,
    }
    assert split_ranges("1", 7) == {"train": range(7), "validation": None, "test": None}
    assert split_ranges("0, 1", 7)["validation"] == range(7)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=3).filter(any),
    st.integers(0, 10**9),
)
def test_splits_cover_the_dataset_once(shares: list[int], num_sequences: int) -> None:
    ranges = [r for r in split_ranges(",".join(map(str, shares)), num_sequences).values() if r]
    assert sum(len(r) for r in ranges) == num_sequences
    starts = [0, *(r.stop for r in ranges)]
    assert all(r.start == start for r, start in zip(ranges, starts, strict=False))


@pytest.mark.parametrize("shares", ["", "a,b", "90;10", "0,0,0", "-1,2", "1,2,3,4", "1..2", "."])
def test_bad_shares(shares: str) -> None:
    with pytest.raises(UserError, match=r"data\.split="):
        split_ranges(shares, 100)
