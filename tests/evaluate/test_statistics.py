"""Intervals and tests against their closed forms."""

import math

import pytest

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.statistics import mcnemar, wilson_interval

Z = 1.959963984540054  # 97.5% quantile of the normal distribution


@pytest.mark.parametrize(("correct", "total"), [(517, 1151), (0, 10), (7, 7), (1, 1)])
def test_wilson_interval(correct, total):
    share = correct / total
    center = (share + Z**2 / (2 * total)) / (1 + Z**2 / total)
    half = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2)) / (1 + Z**2 / total)
    low, high = wilson_interval(correct, total)
    assert low == pytest.approx(max(0.0, center - half), abs=1e-12)
    assert high == pytest.approx(min(1.0, center + half), abs=1e-12)


def _results(only_first, only_second, both, neither):
    pairs = [(True, False)] * only_first + [(False, True)] * only_second
    pairs += [(True, True)] * both + [(False, False)] * neither
    first = {("finance", item): pair[0] for item, pair in enumerate(pairs)}
    second = {("finance", item): pair[1] for item, pair in enumerate(pairs)}
    return first, second


@pytest.mark.parametrize(("only_first", "only_second"), [(1, 9), (9, 1), (4, 6), (5, 5), (0, 6)])
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second):
    number, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(number, count) for count in range(fewer + 1)) / 2**number
    comparison = mcnemar(*_results(only_first, only_second, both=20, neither=3))
    assert (comparison.only_first, comparison.only_second) == (only_first, only_second)
    assert comparison.p_value == pytest.approx(min(1.0, 2 * tail), rel=1e-12)


def test_equal_results_say_nothing():
    assert mcnemar(*_results(0, 0, both=2, neither=2)).p_value == 1.0


def test_items_must_be_the_same():
    first, second = _results(1, 1, both=1, neither=1)
    del second["finance", 0]
    with pytest.raises(UserError, match=r"1 of them in only one, such as \('finance', 0\)"):
        mcnemar(first, second)
