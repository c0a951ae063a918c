"""A perplexity as a record for a file and as tables for a person."""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dongwu_jax.evaluate.perplexity import Perplexity

Record = dict[str, Any]


def as_record(result: Perplexity) -> Record:
    """What is written to a file."""
    task = result.task
    return {
        "protocol": task.protocol,
        "length": task.length,
        "stride": task.stride,
        "documents": task.documents,
        "tokens": result.tokens,
        "bytes": task.num_bytes,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens_per_second": result.tokens_per_second,
        "by_position": [
            {"first": part.first, "last": part.last, "perplexity": math.exp(part.loss)}
            for part in result.by_position
        ],
    }


_SHOWN = (
    *("stride", "documents", "tokens", "bytes"),
    *("loss", "perplexity", "bits_per_byte", "tokens_per_second"),
)


def show(results: Sequence[Record]) -> None:
    """A column for each length, and below them perplexity by position."""
    console = Console()
    title = f"perplexity, protocol {results[0]['protocol']}"
    table = Table("measure", *(f"length {result['length']}" for result in results), title=title)
    for name in _SHOWN:
        values = [result[name] for result in results]
        if values[0] is not None:
            table.add_row(name, *map(_figure, values))
    console.print(table)
    if any(result["by_position"] for result in results):
        console.print(_positions(results))


def _positions(results: Sequence[Record]) -> Table:
    """Perplexity by tokens of context, a column for each length."""
    heads = (f"length {result['length']}" for result in results)
    table = Table("tokens of context", *heads, title="perplexity by position in the window")
    columns = [
        {(part["first"], part["last"]): part["perplexity"] for part in result["by_position"]}
        for result in results
    ]
    for first, last in sorted({ends for column in columns for ends in column}):
        cells = (column.get((first, last)) for column in columns)
        table.add_row(f"{first} to {last}", *("" if x is None else _figure(x) for x in cells))
    return table


def _figure(value: float | int) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}" if value < 10_000 else f"{value:,.0f}"
    return f"{value:,}"
