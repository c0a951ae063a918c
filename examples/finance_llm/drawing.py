"""The figure beside the tables: perplexity along the road, by window, FinEval, minutes."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from results import Results

from dongwu_jax.output_files import write_output_file

_CHANCE = 0.25  # four choices


def draw(results: Results, models: Sequence[str], path: Path) -> None:
    """Write a PNG of what `results` has of these models."""
    panels = [_along, _windows, _minutes] if results.seconds() else [_along, _windows]
    if results.evaluation("base", "fineval") is not None:
        panels.insert(2, _fineval)
    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        panel(axis, results, models)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_output_file(path, content.getvalue())


def _along(axes: Axes, results: Results, models: Sequence[str]) -> None:
    for kind, label in (("finance", "finance, held out"), ("elsewhere", "elsewhere")):
        found = {
            name: record["results"][0]["perplexity"]
            for name in models
            if (record := results.evaluation(name, kind)) is not None
        }
        axes.plot(list(found), list(found.values()), marker="o", linestyle="none", label=label)
    axes.set(ylabel="perplexity", yscale="log")
    axes.set_title("along the road", pad=24)
    axes.tick_params(axis="x", rotation=60)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)


def _windows(axes: Axes, results: Results, _: Sequence[str]) -> None:
    lengths: list[int] = []
    for name in ("continued", "extended"):
        record = results.evaluation(name, "windows")
        if record is not None:
            lengths = [result["length"] for result in record["results"]]
            values = [result["perplexity"] for result in record["results"]]
            axes.plot(lengths, values, marker="o", label=name)
    axes.set(xlabel="window, tokens", ylabel="perplexity", xscale="log", yscale="log")
    axes.set_title("elsewhere, by window")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    if lengths:
        axes.legend()


def _fineval(axes: Axes, results: Results, models: Sequence[str]) -> None:
    found = {
        name: next(score for score in record["fineval"] if score["name"] == "All")
        for name in models
        if (record := results.evaluation(name, "fineval")) is not None
    }
    shares = [score["accuracy"] for score in found.values()]
    below = [score["accuracy"] - score["interval"][0] for score in found.values()]
    above = [score["interval"][1] - score["accuracy"] for score in found.values()]
    axes.errorbar(list(found), shares, yerr=[below, above], fmt="o", capsize=4)
    axes.axhline(_CHANCE, color="grey", linestyle=":", label="chance")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set(title="FinEval, 95% intervals")
    axes.tick_params(axis="x", rotation=60)
    axes.legend()


def _minutes(axes: Axes, results: Results, _: Sequence[str]) -> None:
    seconds = results.seconds()
    axes.barh(list(seconds), [value / 60 for value in seconds.values()])
    axes.invert_yaxis()
    axes.set(xlabel="minutes", title="each stage")
