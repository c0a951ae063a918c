"""Where metrics go: the console, metrics.jsonl, TensorBoard, Weights & Biases, Prometheus."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dongwu_jax.config import RunConfig
from dongwu_jax.errors import UserError

Metrics = dict[str, float]


class Report(Protocol):
    """Something that takes the metrics of a step."""

    def write(self, step: int, metrics: Metrics) -> None: ...

    def close(self) -> None: ...


def open_reports(config: RunConfig, start_step: int, resumed: bool) -> list[Report]:
    """The reports that the configuration asks for; call on one process only.

    Args:
        resumed: whether a checkpoint of this run is continued, whose metrics are kept.
    """
    directory = config.log_directory
    reports: list[Report] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        reports.append(JsonLinesReport(directory / "metrics.jsonl", start_step, resumed))
        if config.logging.tensorboard:
            reports.append(TensorBoardReport(directory / "tensorboard", start_step))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"logging.directory={directory}: cannot be written: {error}; choose another folder"
        ) from None
    if config.logging.wandb_project:
        reports.append(WandbReport(config))
    if config.logging.prometheus_port is not None:
        port, address = config.logging.prometheus_port, config.logging.prometheus_address
        reports.append(PrometheusReport(port, address, config.steps))
    return [ConsoleReport(config.steps, start_step), *reports]


class ConsoleReport:
    """A live progress bar in a terminal, plain lines elsewhere."""

    def __init__(self, total_steps: int, start_step: int):
        self._total = total_steps
        self._live = sys.stdout.isatty()
        self._console = Console(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("compiling", total=total_steps, completed=start_step)
        self._progress.start()

    def write(self, step: int, metrics: Metrics) -> None:
        line = "  ".join(_describe(metrics))
        if self._live and "validation_loss" not in metrics:
            self._progress.update(self._task, completed=step, description=line)
        else:
            self._console.print(f"step {step}/{self._total}  {line}")

    def close(self) -> None:
        self._progress.stop()


def _describe(metrics: Metrics) -> list[str]:
    """The metrics that a person watches, as short texts."""
    formats = {
        "loss": "loss {:.4f}",
        "divergence": "divergence {:.4f}",
        "language_model_loss": "text {:.4f}",
        "teacher_loss": "teacher's {:.4f}",
        "validation_loss": "validation loss {:.4f}",
        "validation_perplexity": "perplexity {:.2f}",
        "gradient_norm": "grad norm {:.3f}",
        "learning_rate": "lr {:.3e}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "tflops_per_device": "{:.3g} TFLOP/s",
        "mfu": "MFU {:.1%}",
    }
    return [form.format(metrics[name]) for name, form in formats.items() if name in metrics]


class JsonLinesReport:
    """One JSON object a step; a resumed run replaces what it is going to do again.

    `time` is in seconds since the epoch.
    """

    def __init__(self, path: Path, start_step: int, resumed: bool):
        if path.exists() and not resumed:
            _set_aside(path)
        elif path.exists():
            _drop_lines_after(path, start_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Metrics) -> None:
        self._file.write(
            json.dumps({"step": step, "time": round(time.time(), 3), **metrics}) + "\n"
        )
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _set_aside(path: Path) -> None:
    """Keep what another run, or one that began afresh, has written here: metrics.1.jsonl, ..."""
    if path.stat().st_size:
        number = 1
        while (kept := path.with_suffix(f".{number}{path.suffix}")).exists():
            number += 1
        path.rename(kept)


def _drop_lines_after(path: Path, step: int) -> None:
    """Keep the complete lines of steps up to `step`."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            keep = json.loads(line)["step"] <= step
        except json.JSONDecodeError:  # the last line of a killed run
            continue
        except (KeyError, TypeError):
            raise UserError(
                f"{path}: has a line that is no metrics of a run: {line[:60]!r}; move the file "
                "away, or set logging.directory to another folder"
            ) from None
        if keep:
            kept.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


class TensorBoardReport:
    """TensorBoard event files."""

    def __init__(self, directory: Path, start_step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=start_step + 1)

    def write(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbReport:
    """Weights & Biases, when the `wandb` extra is installed."""

    def __init__(self, config: RunConfig):
        try:
            import wandb
        except ImportError:
            raise UserError(
                "logging.wandb_project is set, but wandb is not installed: "
                "pip install 'dongwu_jax[wandb]'"
            ) from None
        self._run: Any = wandb.init(
            project=config.logging.wandb_project, config=config.model_dump(mode="json")
        )

    def write(self, step: int, metrics: Metrics) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


class PrometheusReport:
    """Gauges of the latest metrics at http://address:port/metrics, with the `prometheus` extra."""

    def __init__(self, port: int, address: str, total_steps: int):
        try:
            import prometheus_client
        except ImportError:
            raise UserError(
                f"logging.prometheus_port={port} is set, but prometheus_client is not installed: "
                "pip install 'dongwu_jax[prometheus]'"
            ) from None
        self._registry = prometheus_client.CollectorRegistry()
        self._gauges: dict[str, Any] = {}
        self._set("total_steps", total_steps)
        try:
            self._server, self._thread = prometheus_client.start_http_server(
                port, address, self._registry
            )
        except OSError as error:
            raise UserError(
                f"logging.prometheus_port={port}: cannot listen on {address}:{port}: "
                f"{error.strerror}; choose another port or logging.prometheus_address"
            ) from None

    def write(self, step: int, metrics: Metrics) -> None:
        self._set("step", step)
        self._set("report_time_seconds", time.time())
        for name, value in metrics.items():
            self._set(name, value)

    def _set(self, name: str, value: float) -> None:
        from prometheus_client import Gauge

        if name not in self._gauges:
            told = f"{name.replace('_', ' ')} of the training, as in metrics.jsonl"
            self._gauges[name] = Gauge(f"dongwu_jax_{name}", told, registry=self._registry)
        self._gauges[name].set(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
