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
        _show_perplexity(first["perplexity"], second["perplexity"])
    if "fineval" in first:
        _show_fineval(first["fineval"], second["fineval"])


def _show_perplexity(first: dict[str, list[Record]], second: dict[str, list[Record]]) -> None:
    protocol = next(iter(first.values()))[0]["protocol"]
    heads = ("perplexity A", "perplexity B", "bits per byte A", "bits per byte B", "B / A")
    table = Table("data", "length", *heads, title=f"protocol {protocol}")
    for data, results in first.items():
        for a, b in zip(results, second[data], strict=True):
            perplexities = (f"{x['perplexity']:,.3f}" for x in (a, b))
            bits = (f"{x['bits_per_byte']:.4f}" for x in (a, b))
            # Of other tokens, only bits per byte can be compared.
            measure = "perplexity" if a["tokens"] == b["tokens"] else "bits_per_byte"
            change = f"{b[measure] / a[measure] - 1:+.2%}"
            table.add_row(data, f"{a['length']:,}", *perplexities, *bits, change)
    Console().print(table)


def _show_fineval(first: Record, second: Record) -> None:
    models = {
        name: list(map(_score, record["scores"])) for name, record in (("A", first), ("B", second))
    }
    show_scores(models, _score(first["majority"]))
    show_difference(("A", "B"), (_items(first), _items(second)))


def _score(record: Record) -> Score:
    return Score(record["name"], record["correct"], record["total"])


def _items(record: Record) -> dict[Any, bool]:
    return {(subject, number): right for subject, number, right in record["items"]}
