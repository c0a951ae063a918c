"""Where metrics go: the console, metrics.jsonl, TensorBoard, Weights & Biases, Prometheus."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dongwu_jax.config import RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.training.records.metrics_file import MetricsFile

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


class Report(Protocol):
    """Something that takes the metrics of a step."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Report the metrics of a step, floats by name.

        Raises:
            OSError: they cannot be written.
        """

    def close(self) -> None:
        """Write what is still to be written; no `write` follows.

        Raises:
            OSError: it cannot be written.
        """


def open_reports(config: RunConfig, start_step: int, resumed: bool) -> "Reports":
    """The reports that the configuration asks for; call on one process only.

    Args:
        resumed: whether a checkpoint of this run is continued, whose metrics are kept.
    """
    directory = config.log_directory
    reports: list[Report] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        reports.append(MetricsFile(directory / "metrics.jsonl", start_step, resumed))
        if config.logging.tensorboard:
            # Only now: it takes a while to import.
            from dongwu_jax.training.records.tensorboard_report import TensorBoardReport

            reports.append(TensorBoardReport(directory / "tensorboard", start_step))
    except OSError as error:
        raise UserError(
            f"logging.directory={directory}: cannot be written: {error}; choose another folder"
        ) from None
    if config.logging.wandb_project:
        reports.append(WandbReport(config))
    if config.logging.prometheus_port is not None:
        port, address = config.logging.prometheus_port, config.logging.prometheus_address
        reports.append(PrometheusReport(port, address, config.steps))
    return Reports([ConsoleReport(config.steps, start_step), *reports])


class Reports:
    """All reports of a run: one that cannot be written is said, and the run goes on."""

    def __init__(self, reports: Sequence[Report] = ()):
        self._reports = reports
        self._failing: set[Report] = set()

    def write(self, step: int, metrics: Metrics) -> None:
        """Report the metrics of a step."""
        for report in self._reports:
            self._try(report, lambda report=report: report.write(step, metrics))  # type: ignore[misc]

    def close(self) -> None:
        """Write what is still to be written."""
        for report in self._reports:
            self._try(report, report.close)

    def _try(self, report: Report, write: Callable[[], None]) -> None:
        try:
            write()
            self._failing.discard(report)
        except OSError as error:  # a full disk, a reader of the output that is gone
            if report not in self._failing:
                name = type(report).__name__
                logger.warning("%s: cannot be written: %s; the run goes on", name, error)
            self._failing.add(report)


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
        """Show what a person watches of the metrics; a validation's stay on the screen."""
        line = "  ".join(_describe(metrics))
        if self._live and "validation_loss" not in metrics:
            self._progress.update(self._task, completed=step, description=line)
        else:
            self._console.print(f"step {step}/{self._total}  {line}")

    def close(self) -> None:
        """Leave the progress bar as it stands."""
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
        """Log the metrics, floats by name, under their step."""
        self._run.log(metrics, step=step)

    def close(self) -> None:
        """Send what is still to be sent, and end the run there."""
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
        """Set the gauge of each metric, floats by name; a name's first value makes its gauge."""
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
        """Stop the server; its port is free when this returns."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
