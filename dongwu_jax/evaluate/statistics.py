"""How sure a number of correct answers is, and whether two models really differ."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from scipy.stats import binomtest

from dongwu_jax.errors import UserError

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items.

    Attributes:
        only_first, only_second: items that one model has right and the other wrong.
        p_value: how likely so uneven a split is when both models are equally good.
    """

    only_first: int
    only_second: int
    p_value: float


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95% confidence interval of an accuracy (Wilson 1927), as fractions.

    Args:
        total: at least 1.
    """
    interval = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first: Mapping[Item, bool], second: Mapping[Item, bool]) -> Comparison:
    """Exact two-sided test of McNemar (1947): is one of two models better?

    Items that both have right, or both wrong, say nothing about that. Without any other the
    p-value is 1.

    Args:
        first, second: whether each model has each item right.

    Raises:
        UserError: the items are not the same.
    """
    different = first.keys() ^ second.keys()
    if different:
        raise UserError(
            f"two results with different items, {len(different)} of them in only one, such as "
            f"{next(iter(different))}; evaluate both models on the same tasks with the same limit"
        )
    only_first = sum(right and not second[item] for item, right in first.items())
    only_second = sum(right and not first[item] for item, right in second.items())
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return Comparison(only_first, only_second, p_value)
