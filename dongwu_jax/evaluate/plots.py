"""Figures of results as PNG files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.output_files import check_output_file, write_output_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def check_can_draw(path: Path) -> None:
    """Refuse before the work what could not be drawn after it.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--png: needs matplotlib; pip install 'dongwu_jax[eval]'") from None
    check_output_file(path)


def draw_perplexity(path: Path, title: str, results: Sequence[dict[str, Any]]) -> None:
    """Perplexity against tokens of context, and against length.

    Args:
        results: records of `perplexity_report.as_record`.
    """
    told = [result for result in results if result["by_position"]]  # not by every protocol
    figure = _figure(10 if told else 5, 4)
    panels = figure.subplots(1, 2 if told else 1, squeeze=False)[0]
    if told:
        _draw_positions(panels[0], told)
    lengths = [result["length"] for result in results]
    panels[-1].plot(lengths, [result["perplexity"] for result in results], marker="o")
    panels[-1].set(xlabel="length of the window, tokens", ylabel="perplexity", xscale="log")
    panels[-1].set_xticks(lengths, [str(length) for length in lengths])
    panels[-1].minorticks_off()
    _write(figure, path, title)


def _draw_positions(axes: "Axes", results: Sequence[dict[str, Any]]) -> None:
    for result in results:
        parts = result["by_position"]
        middle = [(part["first"] + part["last"]) / 2 for part in parts]
        values = [part["perplexity"] for part in parts]
        axes.plot(middle, values, marker=".", label=f"length {result['length']}")
    axes.set(xlabel="tokens of context", ylabel="perplexity", xscale="log", yscale="log")
    axes.legend()


def draw_heat_map(
    path: Path, title: str, lengths: Sequence[int], depths: Sequence[float], rates: np.ndarray
) -> None:
    """Share of keys found, red to green, by length (columns) and depth (rows).

    Args:
        rates: [depths, lengths], from 0 to 1.
    """
    figure = _figure(2 + 0.9 * len(lengths), 1.8 + 0.4 * len(depths))
    axes = figure.subplots()
    image = axes.imshow(rates, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set(xlabel="length, tokens", ylabel="depth of the key")
    for row, column in np.ndindex(rates.shape):
        axes.text(column, row, f"{rates[row, column]:.0%}", ha="center", va="center")
    figure.colorbar(image, label="keys found")
    _write(figure, path, title)


def _figure(width: float, height: float) -> "Figure":
    # A figure of its own, not pyplot's: no display, no state that others share.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: "Figure", path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_output_file(path, content.getvalue())
