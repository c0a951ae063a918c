"""FinEval's scores as tables for a person: never a percentage without its questions."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dongwu_jax.evaluate.fineval import Score
from dongwu_jax.evaluate.statistics import mcnemar

_SIGNIFICANT = 0.05


def show_scores(models: Mapping[str, Sequence[Score]], majority: Score) -> None:
    """A row for each model, a column for each category, and what guessing scores.

    Args:
        models: scores by what to call the model, all of the same categories.
    """
    categories = [score.name for score in next(iter(models.values()))]
    table = Table("model", *categories, title="FinEval, correct answers (95% interval)")
    for name, scores in models.items():
        table.add_row(name, *map(_cell, scores))
    console = Console()
    console.print(table)
    console.print(
        f"{majority.name}: {majority.correct}/{majority.total} = {majority.accuracy:.1%}; "
        "a model whose interval reaches down to it has shown nothing",
        highlight=False,
    )


def show_difference(names: tuple[str, str], items: tuple[dict[Any, bool], dict[Any, bool]]) -> None:
    """Whether two models' scores on the same questions really differ.

    Raises:
        UserError: the questions are not the same.
    """
    found = mcnemar(*items)
    verdict = "differ" if found.p_value < _SIGNIFICANT else "cannot be told apart by this"
    Console().print(
        f"only {names[0]} right: {found.only_first} questions, only {names[1]}: "
        f"{found.only_second}; exact McNemar p = {found.p_value:.3g}: the models {verdict}",
        highlight=False,
    )


def _cell(score: Score) -> str:
    low, high = score.interval
    share = f"{score.accuracy:.2%} ({low:.1%} to {high:.1%})"
    return f"{score.correct}/{score.total}\n{share}"
