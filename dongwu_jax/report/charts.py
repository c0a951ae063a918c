"""What is drawn against steps, as plain data for chart.js."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dongwu_jax.report.curves import MAX_POINTS, rounded, smooth, smooth_rate, thin
from dongwu_jax.report.metrics import Metrics
from dongwu_jax.report.perplexities import PerplexityReport

Data = dict[str, Any]

# Below this ratio of the highest to the lowest value a linear axis shows as much.
_LOG_FROM_RATIO = 8.0
_LARGEST_JUMPS = 200


@dataclass(frozen=True)
class Plan:
    """One chart.

    Attributes:
        series: metric and its name in the legend; the first may be smoothed, with the points
            beneath.
        form: how values are written: number, exponent, percent, count.
        log: draw on a log axis at first where values span enough; readers can switch.
        zero: begin a linear axis at 0.
        rate: an amount a second.
    """

    title: str
    series: tuple[tuple[str, str], ...]
    form: str = "number"
    smoothed: bool = True
    log: bool = False
    zero: bool = False
    rate: bool = False
    wide: bool = False
    marked: bool = False


_PLANS = (
    Plan(
        "Loss",
        (("loss", "training"), ("validation_loss", "validation")),
        log=True,
        wide=True,
        marked=True,
    ),
    Plan(
        "Distillation",
        (
            ("divergence", "divergence from the teacher"),
            ("language_model_loss", "loss on the text"),
            ("teacher_loss", "the teacher's loss"),
        ),
        log=True,
    ),
    Plan("Gradient norm", (("gradient_norm", "gradient norm"),), log=True, marked=True),
    Plan("Learning rate", (("learning_rate", "learning rate"),), "exponent", smoothed=False),
    Plan(
        "Tokens per second", (("tokens_per_second", "all devices"),), "count", zero=True, rate=True
    ),
    Plan("TFLOP/s per device", (("tflops_per_device", "TFLOP/s"),), zero=True, rate=True),
    Plan("Model FLOPs utilisation", (("mfu", "MFU"),), "percent", zero=True, rate=True),
    Plan("Seconds per step", (("step_seconds", "seconds"),), log=True, zero=True),
    Plan("Share of time waiting for data", (("data_wait_share", "waiting"),), "percent", zero=True),
    Plan("Memory, GiB (highest so far)", (("memory_gib", "GiB"),), smoothed=False, zero=True),
)
# Said by another curve already.
_NOT_DRAWN = ("validation_perplexity",)


def curves(metrics: Metrics) -> list[Data]:
    """The charts for which there are values; metrics that no plan knows get one each."""
    known = {name for plan in _PLANS for name, _ in plan.series} | {*_NOT_DRAWN}
    others = [
        Plan(name.replace("_", " ").capitalize(), ((name, name.replace("_", " ")),))
        for name in metrics.columns
        if name not in known
    ]
    charts = [_chart(plan, metrics) for plan in (*_PLANS, *others)]
    return [chart for chart in charts if chart["series"]]


def _chart(plan: Plan, metrics: Metrics) -> Data:
    series: list[Data] = []
    lowest, highest = np.inf, -np.inf
    for place, (metric, name) in enumerate(plan.series):
        steps, values = metrics.series(metric)
        if not len(values):
            continue
        lowest, highest = min(lowest, values.min()), max(highest, values.max())
        sparse = metric.startswith("validation")
        if plan.smoothed and not sparse and len(values) > 20:
            series.append(_series(name, "beneath", place, steps, values))
            mean = smooth_rate(values) if plan.rate else smooth(values)
            series.append(_series(f"{name}, smoothed", "line", place, steps, mean))
        else:
            series.append(_series(name, "points" if sparse else "line", place, steps, values))
    wide_range = bool(lowest > 0 and highest / lowest > _LOG_FROM_RATIO)
    return {
        "title": plan.title,
        "form": plan.form,
        "log": plan.log and wide_range,
        "logPossible": bool(lowest > 0),
        "zero": plan.zero,
        "wide": plan.wide,
        "marked": plan.marked,
        "series": series,
    }


def _series(name: str, role: str, colour: int, steps: np.ndarray, values: np.ndarray) -> Data:
    # A smoothed line needs fewer points than what it was made of.
    places = thin(steps, values, MAX_POINTS // 2 if role == "line" else MAX_POINTS)
    return {
        "name": name,
        "role": role,
        "colour": colour,
        "x": steps[places].tolist(),
        "y": rounded(values[places]),
    }


def axis(metrics: Metrics, began: float | None, tokens_per_step: float) -> Data:
    """How steps translate into tokens and into time, in the unit that suits the run's length.

    Args:
        began: when the first start began; None: unknown, time is then that of steps alone.
    """
    steps, _ = metrics.series("loss")
    trains = np.isfinite(metrics.columns["loss"]) if len(steps) else np.zeros(0, bool)
    times = metrics.time[trains] if len(steps) else np.zeros(0)
    if len(steps) and np.isfinite(times).all():
        seconds = times - (times[0] if began is None else began)
        meaning = "wall time since the first start"
    else:
        pace = metrics.columns.get("step_seconds", np.full(len(metrics.step), np.nan))
        seconds = np.cumsum(np.nan_to_num(pace[trains]) * np.diff(steps, prepend=0))
        meaning = "time spent on steps; this run did not record the clock"
    places = _knots(seconds)
    longest = seconds[-1] if len(seconds) else 0.0
    unit, of_seconds = ("hours", 3600) if longest > 7200 else ("minutes", 60)
    return {
        "tokensPerStep": tokens_per_step,
        "unit": unit,
        "meaning": meaning,
        "steps": steps[places].tolist(),
        "elapsed": np.round(seconds[places] / of_seconds, 5).tolist(),
    }


def _knots(seconds: np.ndarray) -> np.ndarray:
    """Places between which time passes evenly enough: some, and both ends of the largest jumps."""
    if len(seconds) <= MAX_POINTS:
        return np.arange(len(seconds))
    jumps = np.argsort(np.diff(seconds))[-_LARGEST_JUMPS:]
    even = np.linspace(0, len(seconds) - 1, MAX_POINTS // 2).astype(np.int64)
    return np.unique(np.concatenate([even, jumps, jumps + 1]))


def perplexity_charts(reports: Sequence[PerplexityReport]) -> list[Data]:
    """Perplexity by length of the window, a line for each report; by position, one for each."""
    if not reports:
        return []
    by_length = [
        _line(
            report.name,
            colour,
            sorted((result["length"], result["perplexity"]) for result in report.results),
        )
        for colour, report in enumerate(reports)
    ]
    charts = [
        _of_tokens("Perplexity by length of the window, tokens", "tokens in the window", by_length)
    ]
    for report in reports:
        lines = [
            _line(f"window of {result['length']:,}", colour, _positions(result))
            for colour, result in enumerate(report.results)
            if result.get("by_position")
        ]
        if lines:
            title = f"Perplexity by tokens of context, {report.name}"
            charts.append(_of_tokens(title, "tokens of context at most", lines))
    return charts


def _positions(result: Data) -> list[tuple[float, float]]:
    return [(part["last"], part["perplexity"]) for part in result["by_position"]]


def _line(name: str, colour: int, points: Sequence[tuple[float, float]]) -> Data:
    x, y = zip(*points, strict=True)
    return {
        "name": name,
        "role": "points",
        "colour": colour,
        "x": list(x),
        "y": rounded(np.array(y, float)),
    }


def _of_tokens(title: str, x_name: str, lines: list[Data]) -> Data:
    values = [value for line in lines for value in line["y"]]
    return {
        "title": title,
        "form": "number",
        "log": max(values) / min(values) > _LOG_FROM_RATIO,
        "logPossible": True,
        "zero": False,
        "wide": False,
        "marked": False,
        "xName": x_name,
        "series": lines,
    }
