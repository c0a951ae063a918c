"""The tables of a comparison: perplexity by text and length, FinEval by category."""

from typing import Any

from rich.console import Console
from rich.table import Table

from dongwu_jax.evaluate.fineval import Score
from dongwu_jax.evaluate.fineval_report import show_difference, show_scores

Record = dict[str, Any]


def show(first: Record, second: Record) -> None:
    """Print what `comparison.measured` found of two models.

    Raises:
        UserError: they answered different questions.
    """
    for name, record in (("A", first), ("B", second)):
        line = f"{name}: {record['model']}  dtype {record['dtype']}"
        Console().print(line, highlight=False, soft_wrap=True)
    if first["perplexity"]:
        _show_perplexity(first, second)
    if first["fineval"] is not None:
        _show_fineval(first["fineval"], second["fineval"])


def _show_perplexity(first: Record, second: Record) -> None:
    protocol = first["perplexity"][0]["protocol"]
    table = Table("data", "length", "A", "B", "B / A", title=f"perplexity, protocol {protocol}")
    for a, b in zip(first["perplexity"], second["perplexity"], strict=True):
        change = b["perplexity"] / a["perplexity"] - 1
        values = (f"{x['perplexity']:,.3f}" for x in (a, b))
        table.add_row(a["data"], f"{a['length']:,}", *values, f"{change:+.2%}")
    Console().print(table)


def _show_fineval(first: Record, second: Record) -> None:
    models = {
        name: [Score(**score) for score in record["scores"]]
        for name, record in (("A", first), ("B", second))
    }
    show_scores(models, Score(**first["majority"]))
    show_difference(("A", "B"), (_items(first), _items(second)))


def _items(record: Record) -> dict[Any, bool]:
    return {(subject, number): right for subject, number, right in record["items"]}
