"""One HTML file that holds everything: style, script and data; nothing is loaded from elsewhere.

Texts from files are escaped by the template; a policy in the page lets the browser run the page's
own script and no other.
"""

import base64
import hashlib
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import jinja2
import numpy as np

from dongwu_jax.report import charts, readable, summary
from dongwu_jax.report.anomalies import Anomaly, find_anomalies
from dongwu_jax.report.curves import MAX_POINTS
from dongwu_jax.report.data_mix import data_mix
from dongwu_jax.report.goodput import (
    KINDS,
    Interval,
    Kind,
    find_intervals,
    goodput,
    timeline,
    totals,
)
from dongwu_jax.report.hosts import host_times
from dongwu_jax.report.profile_table import profile_tables
from dongwu_jax.report.restarts import Start, list_starts
from dongwu_jax.report.run_folder import RunFolder
from dongwu_jax.report.settings import as_yaml
from dongwu_jax.training.records.run_records import record

Context = dict[str, Any]

_SCRIPTS = ("page_state.js", "numbers.js", "chart.js", "timeline.js", "main.js")
_TIMELINE_COLUMNS = 320
_MOST_HOSTS = 100
_SLOW_HOST = 1.05  # of the median host's time
_KIND_NAMES: dict[Kind, str] = {
    "steps": "steps that count",
    "lost": "steps lost",
    "startup": "start-up",
    "compilation": "compilation",
    "evaluation": "evaluation",
    "checkpoint": "saving",
    "other": "other pauses",
    "down": "nothing ran",
}
_START_KINDS: tuple[Kind, ...] = ("startup", "compilation", "steps", "evaluation", "checkpoint")


def render(run: RunFolder) -> str:
    """The page of a run."""
    assets = resources.files("dongwu_jax.report") / "assets"
    script = "\n".join((assets / name).read_text("utf-8") for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((assets / "page.html.jinja").read_text("utf-8"))
    return template.render(
        script=script,
        script_hash=f"sha256-{digest}",
        style=(assets / "page.css").read_text("utf-8"),
        **_context(run),
    )


def _context(run: RunFolder) -> Context:
    state = summary.find_state(run)
    intervals = find_intervals(run.sessions, run.metrics)
    anomalies = find_anomalies(run.metrics, run.sessions)
    starts = list_starts(run, intervals, state == "running")
    tokens = summary.tokens_per_step(run.config)
    axis = charts.axis(run.metrics, run.sessions[0].began if run.sessions else None, tokens)
    curves = charts.curves(run.metrics)
    return {
        "name": "/".join(run.path.resolve().parts[-2:]),
        "state": state,
        **_progress(run, tokens),
        "facts": summary.head_facts(run),
        "tiles": summary.tiles(run, intervals, state),
        "axis": axis,
        "curves": curves,
        "max_points": f"{MAX_POINTS:,}",
        **_time(run, intervals),
        "starts": [_start(number, start) for number, start in enumerate(starts, 1)],
        "start_kinds": [_KIND_NAMES[kind] for kind in _START_KINDS],
        "anomalies": anomalies,
        "mix": _mix(run),
        "chat": record(run.config.get("data")).get("format") == "chat",
        "perplexities": run.perplexities,
        "perplexity_rows": _perplexity_rows(run),
        "hosts": _hosts(run),
        "profile": profile_tables(run.profile),
        "config": as_yaml(run.config) if run.config else "",
        "footer": f"Made by dongwu_jax.report on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from "
        f"{len(run.metrics.step):,} lines of metrics.jsonl.",
        "chart_data": {
            "axis": axis,
            "range": _range(run),
            "curves": curves,
            "restarts": _marks(starts),
            "anomalies": [_anomaly(anomaly) for anomaly in anomalies],
            "perplexities": charts.perplexity_charts(run.perplexities),
            "timeline": _timeline(intervals),
        },
    }


def _progress(run: RunFolder, tokens: float) -> Context:
    last, total = run.metrics.last_step, summary.total_steps(run)
    done = f"{last:,} of {total:,} steps" if total else f"{last:,} steps"
    if tokens:
        seen = readable.count(last * tokens)
        done += (
            f", {seen} of {readable.count(total * tokens)} tokens" if total else f", {seen} tokens"
        )
    return {"progress": min(last / total, 1.0) if total else None, "done": done}


def _range(run: RunFolder) -> list[int]:
    steps = run.metrics.step
    first, last = (int(steps.min()), int(steps.max())) if len(steps) else (0, 1)
    return [first, max(last, first + 1)]


def _time(run: RunFolder, intervals: list[Interval]) -> Context:
    seconds = totals(intervals)
    whole = sum(seconds.values())
    return {
        "goodput": readable.share(goodput(seconds)),
        "goodput_up": readable.share(goodput(seconds, while_up=True))
        if seconds["down"] > 0
        else "",
        "wall": readable.duration(whole),
        "waited": _waited(run),
        "kinds": [
            {
                "kind": kind,
                "name": _KIND_NAMES[kind],
                "duration": readable.duration(seconds[kind]),
                "share": readable.share(seconds[kind] / whole),
            }
            for kind in KINDS
            if seconds[kind] > 0
        ],
    }


def _waited(run: RunFolder) -> str:
    """How much of the steps was spent on data, weighted by what each reported step took."""
    steps, shares = run.metrics.series("data_wait_share")
    same, paces = run.metrics.series("step_seconds")
    if not len(shares) or len(steps) != len(same):
        return ""
    spent = paces * np.diff(steps, prepend=0)
    share = float((spent * shares).sum() / max(spent.sum(), 1e-12))
    return f"Of the time of steps, {readable.share(share)} was waiting for data."


def _start(number: int, start: Start) -> Context:
    return {
        "number": number,
        "began": readable.moment(start.began),
        "first_step": f"{start.first_step:,}",
        "last_step": f"{start.last_step:,}",
        "lost": start.lost_steps > 0,
        "lost_steps": f"{start.lost_steps:,}",
        "seconds": [readable.duration(start.seconds[kind]) for kind in _START_KINDS],
        "goodput": readable.share(start.goodput),
        "ending": start.ending,
        "changes": start.changes,
    }


def _marks(starts: list[Start]) -> list[Context]:
    return [
        {"step": start.first_step, "what": f"start {number}, from step {start.first_step:,}"}
        for number, start in enumerate(starts, 1)
        if number > 1
    ]


def _anomaly(anomaly: Anomaly) -> Context:
    return {"step": anomaly.step, "kind": anomaly.kind, "what": anomaly.what}


def _timeline(intervals: list[Interval]) -> Context:
    shares = timeline(intervals, _TIMELINE_COLUMNS)
    hours = (intervals[-1].end - intervals[0].start) / 3600 if intervals else 0.0
    return {
        "kinds": KINDS,
        "names": [_KIND_NAMES[kind] for kind in KINDS],
        "hours": hours,
        "shares": np.round(shares, 4).tolist(),
    }


def _hosts(run: RunFolder) -> list[Context]:
    return [
        {
            "host": host.host,
            "slow": host.slowness >= _SLOW_HOST,
            "cells": [
                f"{host.median:.4g}",
                f"{host.latest:.4g}",
                f"{host.slowness:.3f}",
                f"{host.worst:.3f} at step {host.worst_step:,}",
                readable.share(host.slowest),
            ],
        }
        for host in host_times(run.sessions)[:_MOST_HOSTS]
    ]


def _mix(run: RunFolder) -> list[Context]:
    uses = data_mix(run.sessions, run.config)
    largest = max((use.real or use.planned or 0.0 for use in uses), default=0.0)
    return [
        {
            "name": use.name,
            "tokens": _or_dash(use.tokens, readable.count),
            "planned": readable.share(use.planned),
            "real": readable.share(use.real),
            "width": round(100 * (use.real or use.planned or 0.0) / largest, 1) if largest else 0,
            "seen": _or_dash(use.seen_tokens, readable.count),
            "epochs": _or_dash(use.epochs, lambda epochs: f"{epochs:.2f}"),
        }
        for use in uses
    ]


def _perplexity_rows(run: RunFolder) -> list[list[str]]:
    whole = ("length", "documents", "tokens")
    broken = ("loss", "perplexity", "bits_per_byte")
    return [
        [
            report.name,
            *(_or_dash(result.get(name), lambda value: f"{value:,.0f}") for name in whole),
            *(_or_dash(result.get(name), readable.figure) for name in broken),
        ]
        for report in run.perplexities
        for result in report.results
    ]


def _or_dash(value: Any, form: Any) -> str:
    return form(value) if isinstance(value, int | float) else "–"
