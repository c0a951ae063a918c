"""Damaged checkpoints of a run are named and set aside, until the newest one is good."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dongwu_jax.errors import UserError
from dongwu_jax.training.checkpoint_folders import is_step
from dongwu_jax.training.checkpoint_integrity import is_verifiable, problems_of
from dongwu_jax.training.run_log import RunLog

logger = logging.getLogger(__name__)

_MOST_SHOWN = 5


def set_damaged_aside(directory: Path, run_log: RunLog) -> None:
    """Rename the newest steps to `N.damaged` until there is one without a problem.

    A collective operation: the processes share the reading.

    Raises:
        UserError: none is left, but some are damaged.
    """
    while (step := _agreed(_newest(directory))) >= 0:
        folder = directory / str(step)
        problems = ["lacks parameters or config"]
        if is_step(folder):
            problems = problems_of(folder, (jax.process_index(), jax.process_count()))
        for problem in problems[:_MOST_SHOWN]:
            logger.warning("%s: %s", folder, problem)
        if _sum(len(problems)) == 0:
            if not is_verifiable(folder):
                logger.warning("%s: has no checksums; it can be read, which is all we know", folder)
            return
        if jax.process_index() == 0:
            aside = _set_aside(folder)
            logger.warning("%s: is damaged; set aside as %s", folder, aside.name)
            fields: dict[str, Any] = {"step": step, "problems": problems[:_MOST_SHOWN]}
            run_log.event("damaged_checkpoint", **fields, set_aside=str(aside))
        _wait_for_all(f"set aside {step}")
    damaged = sorted(directory.glob("*.damaged*")) if directory.is_dir() else []
    if _sum(len(damaged)):
        raise UserError(
            f"{directory}: no good checkpoint is left, only {', '.join(p.name for p in damaged)}; "
            "mend one and give it back its number, or move them away to start anew"
        )


def _newest(directory: Path) -> int:
    entries = list(directory.iterdir()) if directory.is_dir() else []
    numbers = [int(entry.name) for entry in entries if entry.name.isdigit() and entry.is_dir()]
    return max(numbers, default=-1)


def _set_aside(folder: Path) -> Path:
    aside, number = folder.with_name(f"{folder.name}.damaged"), 1
    while aside.exists():
        aside, number = folder.with_name(f"{folder.name}.damaged.{number}"), number + 1
    try:
        folder.rename(aside)
    except OSError as error:
        raise UserError(
            f"{folder}: is damaged and cannot be set aside: {error.strerror}; move it away"
        ) from None
    return aside


def _agreed(step: int) -> int:
    """What process 0 sees: a shared file system may not show all the same at once."""
    if jax.process_count() == 1:
        return step
    return int(multihost_utils.broadcast_one_to_all(np.int32(step)))


def _sum(count: int) -> int:
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(np.int32(count)).sum())


def _wait_for_all(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
