"""Train, validation and test: contiguous ranges of the sequences of one dataset."""

import re
from typing import Literal, get_args

import numpy as np

from dongwu_jax.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_SHARES = re.compile(r"\s*(\d+\.?\d*|\.\d+)(\s*[,/ ]\s*(\d+\.?\d*|\.\d+)){0,2}\s*")


def split_ranges(shares: str, num_sequences: int) -> dict[Split, range | None]:
    """Divide a dataset's sequences as Megatron-LM does, in file order.

    Args:
        shares: relative sizes of train, validation and test, such as "949,50,1"; left out: 0.
        num_sequences: sequences in the dataset.

    Returns:
        The sequence numbers of each split, None where its share is 0. A share above 0 may still
        round to an empty range.

    Raises:
        UserError: `shares` is not one to three numbers with a sum above 0.
    """
    bounds = _boundaries(shares)
    return {
        split: None
        if low == high
        else range(_nearest(low, num_sequences), _nearest(high, num_sequences))
        for split, low, high in zip(SPLITS, bounds[:-1], bounds[1:], strict=True)
    }


def _boundaries(shares: str) -> list[float]:
    """The four ends of the three shares, as fractions of the dataset."""
    if _SHARES.fullmatch(shares) is None:
        raise UserError(
            f"data.split={shares!r}: write one to three shares, such as '949,50,1' "
            "(train, validation, test)"
        )
    numbers = [float(number) for number in re.findall(r"[.\d]+", shares)]
    sizes = np.array(numbers + [0.0] * (len(SPLITS) - len(numbers)))
    if not sizes.sum() > 0:
        raise UserError(f"data.split={shares!r}: at least one share must be above 0")
    bounds = [0.0]
    for fraction in (sizes / sizes.sum()).tolist():
        bounds.append(bounds[-1] + fraction)
    return bounds


def _nearest(fraction: float, num_sequences: int) -> int:
    """Round half to even on float64, as Megatron does."""
    return round(fraction * float(num_sequences))
