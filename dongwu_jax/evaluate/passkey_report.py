"""Found pass keys as a record for a file and as a table for a person."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dongwu_jax.evaluate.passkey import Retrieval
from dongwu_jax.evaluate.plots import draw_heat_map

_GOOD, _FAIR = 0.8, 0.5  # from these rates on a cell is green or yellow


def as_record(result: Retrieval) -> dict[str, Any]:
    """What is written to a file."""
    return asdict(result) | {"rate": result.found / result.trials}


def show(results: Sequence[Retrieval]) -> None:
    """A column for each length, a row for each depth, and all depths together."""
    lengths, depths, rates = _by_cell(results)
    table = Table("depth", *(f"{length:,}" for length in lengths), title="pass keys found")
    for depth, row in zip(depths, rates, strict=True):
        table.add_row(f"{depth:.0%}", *map(_cell, row))
    table.add_section()
    table.add_row("all", *map(_cell, rates.mean(axis=0)))
    Console().print(table)


def draw(path: Path, title: str, results: Sequence[Retrieval]) -> None:
    """The heat map, as a PNG file."""
    draw_heat_map(path, title, *_by_cell(results))


def _by_cell(results: Sequence[Retrieval]) -> tuple[list[int], list[float], np.ndarray]:
    """Lengths, depths and rates [depths, lengths]."""
    lengths = sorted({result.length for result in results})
    depths = sorted({result.depth for result in results})
    rates = np.zeros((len(depths), len(lengths)))
    for result in results:
        place = depths.index(result.depth), lengths.index(result.length)
        rates[place] = result.found / result.trials
    return lengths, depths, rates


def _cell(rate: float) -> Text:
    colour = "green" if rate >= _GOOD else "yellow" if rate >= _FAIR else "red"
    return Text(f"{rate:.0%}", style=colour)
