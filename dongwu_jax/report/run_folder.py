"""Everything a run left in its folder that its page is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from dongwu_jax.errors import UserError
from dongwu_jax.report.metrics import Metrics, as_metrics
from dongwu_jax.report.perplexities import PerplexityReport, find_perplexities
from dongwu_jax.report.profile_table import KernelTable, read_kernel_table
from dongwu_jax.report.sessions import Session, find_sessions
from dongwu_jax.training.checkpoints.folders import is_checkpoint, newest_step
from dongwu_jax.training.records.run_records import read_json_lines

HANG_FILES = "hang.process*.txt"
PROFILE_TABLE = Path("profile") / "kernels.json"


@dataclass(frozen=True)
class RunFolder:
    """What was found.

    Attributes:
        config: resolved settings of the last start; of an old run, of its newest checkpoint; empty
            if there is neither.
        profile: the table of kernels that `--profile-steps` left.
        hangs: when the watchdog ended a process, and the file it left.
        modified: when metrics were last written, seconds since the epoch.
    """

    path: Path
    metrics: Metrics
    sessions: list[Session]
    config: dict[str, Any]
    perplexities: list[PerplexityReport]
    profile: KernelTable | None
    hangs: list[tuple[float, str]]
    modified: float


def read_run_folder(path: Path, perplexities: Sequence[Path] = ()) -> RunFolder:
    """Read a run.

    Raises:
        UserError: the folder holds no run, or something in it is damaged.
    """
    metrics_path, events_path = path / "metrics.jsonl", path / "events.jsonl"
    if not path.is_dir():
        raise UserError(f"{path}: is no folder; name the one that holds metrics.jsonl")
    if not metrics_path.exists() and not events_path.exists():
        raise UserError(
            f"{path}: holds no metrics.jsonl; name the folder of a run: logging.directory, or the "
            "one that checkpoint.directory is in"
        )
    metrics = as_metrics(read_json_lines(metrics_path))
    sessions = find_sessions(list(read_json_lines(events_path)), metrics)
    written = metrics_path if metrics_path.exists() else events_path
    return RunFolder(
        path,
        metrics,
        sessions,
        sessions[-1].config if sessions else _checkpoint_config(path / "checkpoints"),
        find_perplexities(path, perplexities),
        read_kernel_table(path / PROFILE_TABLE),
        [(file.stat().st_mtime, file.name) for file in sorted(path.glob(HANG_FILES))],
        written.stat().st_mtime,
    )


def _checkpoint_config(checkpoints: Path) -> dict[str, Any]:
    """Settings that the newest checkpoint keeps, read as plain JSON; empty if there are none."""
    if not is_checkpoint(checkpoints):
        return {}
    try:
        record = orjson.loads((newest_step(checkpoints) / "config" / "metadata").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return record if isinstance(record, dict) else {}
