"""The head of the page: what the run is, how far it is, and how good."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dongwu_jax.config import parse_config
from dongwu_jax.errors import UserError
from dongwu_jax.report import readable
from dongwu_jax.report.curves import smooth
from dongwu_jax.report.goodput import Interval, goodput, totals
from dongwu_jax.report.metrics import Metrics
from dongwu_jax.report.run_folder import RunFolder
from dongwu_jax.training.records.run_records import number, record

# A run is taken to be running for this long, and this many of its usual gaps, after its last line.
_SILENCE_SECONDS = 600.0
_SILENT_GAPS = 20
_RECENT_LINES = 500


@dataclass(frozen=True)
class Tile:
    """One figure with its name and a remark."""

    name: str
    value: str
    remark: str = ""


def find_state(run: RunFolder, now: float | None = None) -> str:
    """finished, running or stopped."""
    total = total_steps(run)
    last = run.metrics.last_step
    if run.sessions:
        session, last = run.sessions[-1], max(last, run.sessions[-1].last_step)
        if session.end is not None:
            return "finished" if session.end.get("reason") == "finished" else "stopped"
        last_sign = session.ended
    else:
        last_sign = run.modified
    if total and last >= total:
        return "finished"
    silence = (time.time() if now is None else now) - last_sign
    gaps = np.diff(run.metrics.time[-_RECENT_LINES:])
    usual = float(np.median(gaps)) if len(gaps) and np.isfinite(gaps).all() else 0.0
    return "running" if silence < max(_SILENCE_SECONDS, _SILENT_GAPS * usual) else "stopped"


def total_steps(run: RunFolder) -> int:
    """Steps of the whole run; 0 if not known."""
    if run.sessions:
        return int(number(run.sessions[-1].start.get("steps"), 0))
    try:
        return parse_config(run.config, source=str(run.path)).steps if run.config else 0
    except UserError:  # written by another version
        return 0


def tokens_per_step(config: dict[str, Any]) -> float:
    """Batch times length; 0 if not known."""
    batch = number(record(config.get("training")).get("global_batch_size"), 0)
    return batch * number(record(config.get("data")).get("sequence_length"), 0)


def head_facts(run: RunFolder) -> list[tuple[str, str]]:
    """What the run is, by name; what is not known is left out."""
    facts: list[tuple[str, str]] = []
    model = record(run.config.get("model"))
    if run.sessions:
        start = run.sessions[-1].start
        facts.append(("model", _model(number(start.get("parameters"), 0), model)))
        devices = record(start.get("devices"))
        processes = int(number(devices.get("processes"), 1))
        where = f", {processes} processes" if processes > 1 else ""
        facts.append(("devices", f"{devices.get('count')} × {devices.get('kind')}{where}"))
        facts.append(("began", f"{readable.moment(run.sessions[0].began)} UTC"))
        facts.append(("last sign", f"{readable.moment(run.sessions[-1].ended)} UTC"))
        versions = record(start.get("versions"))
        told = (f"{name} {versions[name]}" for name in ("dongwu_jax", "jax") if name in versions)
        facts.append(("software", ", ".join(told)))
    elif model:
        facts.append(("model", _model(0, model)))
    batch = record(run.config.get("training")).get("global_batch_size")
    length = record(run.config.get("data")).get("sequence_length")
    if isinstance(batch, int) and isinstance(length, int):
        facts.append(("batch", f"{batch:,} sequences of {length:,} tokens"))
    return facts


def _model(parameters: float, model: dict[str, Any]) -> str:
    layers, width = model.get("num_layers"), model.get("hidden_size")
    shape = f"{layers} layers of {width}"
    return f"{readable.count(parameters)} parameters, {shape}" if parameters else shape


def tiles(run: RunFolder, intervals: Sequence[Interval], state: str) -> list[Tile]:
    """The figures that a person asks for first."""
    metrics = run.metrics
    found = [*_losses(metrics), *_speed(metrics)]
    seconds = totals(intervals)
    if (good := goodput(seconds)) is not None:
        up = goodput(seconds, while_up=True)
        lost = f"{readable.duration(seconds['lost'])} of lost steps"
        remark = f"{readable.share(up)} of the time it was up" if seconds["down"] > 0 else lost
        found.append(Tile("goodput", readable.share(good), remark))
    remaining = total_steps(run) - metrics.last_step
    pace = _pace(metrics)
    if state != "finished" and remaining > 0 and pace is not None:
        left = readable.duration(remaining * pace)
        if state == "running":
            last = run.sessions[-1].ended if run.sessions else run.modified
            arrival = f"{readable.moment(last + remaining * pace)} UTC"
            found.append(Tile("time left", left, arrival))
        else:
            found.append(Tile("work left", left, f"{remaining:,} steps at the last pace"))
    return found


def _losses(metrics: Metrics) -> list[Tile]:
    found = []
    steps, losses = metrics.series("loss")
    if len(losses):
        mean = smooth(losses)
        best = int(np.argmin(mean))
        remark = f"smoothed; lowest {mean[best]:.4f} at step {steps[best]:,}"
        found.append(Tile("training loss", f"{mean[-1]:.4f}", remark))
    steps, losses = metrics.series("validation_loss")
    if len(losses):
        best = int(np.argmin(losses))
        remark = f"best {losses[best]:.4f} at step {steps[best]:,}"
        found.append(Tile("validation loss", f"{losses[-1]:.4f}", remark))
    return found


def _speed(metrics: Metrics) -> list[Tile]:
    found = []
    _, speeds = metrics.series("tokens_per_second")
    _, tflops = metrics.series("tflops_per_device")
    _, mfu = metrics.series("mfu")
    if len(speeds):
        remark = f"{np.median(tflops):.3g} TFLOP/s per device" if len(tflops) else ""
        found.append(Tile("tokens per second", f"{np.median(speeds):,.0f}", f"median; {remark}"))
    if len(mfu):
        _, waits = metrics.series("data_wait_share")
        remark = f"{readable.share(float(np.median(waits)))} waiting for data" if len(waits) else ""
        found.append(Tile("MFU", readable.share(float(np.median(mfu))), f"median; {remark}"))
    return found


def _pace(metrics: Metrics) -> float | None:
    """Seconds of wall time that a step takes of late, pauses included; None if not known."""
    trains = np.isfinite(metrics.columns["loss"]) if "loss" in metrics.columns else None
    if trains is None or not trains.any():
        return None
    times, steps = metrics.time[trains][-_RECENT_LINES:], metrics.step[trains][-_RECENT_LINES:]
    _, paces = metrics.series("step_seconds")
    usual = statistics.median(paces[-_RECENT_LINES:].tolist()) if len(paces) else None
    if len(steps) < 2 or not np.isfinite(times).all():
        return usual
    gaps, done = np.diff(times), np.diff(steps)
    # What lies between two starts is no pace.
    ordinary = gaps <= 50 * max(float(np.median(gaps)), 1e-9)
    return float(gaps[ordinary].sum() / max(int(done[ordinary].sum()), 1))
