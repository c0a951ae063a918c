"""Damaged checkpoints of a run are named and set aside, until the newest one is good."""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from dongwu_jax.errors import UserError
from dongwu_jax.parallel.joint_decisions import all_succeed, of_first_process, sum_over_processes
from dongwu_jax.training.checkpoints.folders import is_of_a_run, is_step_name
from dongwu_jax.training.checkpoints.integrity import is_verifiable, problems_of
from dongwu_jax.training.records.run_log import RunLog

logger = logging.getLogger(__name__)

_MOST_SHOWN = 5
_NONE = -1

Choose = Callable[[Sequence[int]], int]
"""Of the steps that are there, the one that is wanted."""


def set_damaged_aside(directory: Path, run_log: RunLog, choose: Choose = max) -> int | None:
    """Rename the newest step to `N.damaged` until there is one without a problem.

    A collective operation: the processes share the reading. What is no step of a run is left alone.

    Args:
        choose: another step to look at than the newest.

    Returns:
        The good step; None: there is none.

    Raises:
        UserError: files that are there cannot be read, which says nothing about what they hold; or
            a damaged step cannot be renamed.
    """
    all_succeed(functools.partial(_tell_of_others, directory))
    while (step := _agreed(directory, choose)) != _NONE:
        folder = directory / str(step)
        problems = all_succeed(functools.partial(_problems, folder))
        for problem in problems[:_MOST_SHOWN]:
            logger.warning("%s: %s", folder, problem)
        if sum_over_processes(len(problems)) == 0:
            return step
        aside = all_succeed(functools.partial(_set_aside, folder))
        if aside is not None:
            logger.warning("%s: is damaged; set aside as %s", folder, aside.name)
            fields: dict[str, Any] = {"step": step, "problems": problems[:_MOST_SHOWN]}
            run_log.event("damaged_checkpoint", **fields, set_aside=str(aside))
    return None


def _tell_of_others(directory: Path) -> None:
    """Folders with a number for their name that hold something else, such as somebody's notes."""
    if jax.process_index() == 0:
        with _reading(directory):
            others = [entry for entry in _numbered(directory) if not is_of_a_run(entry)]
        for entry in others:
            logger.warning("%s: is no checkpoint of a run; it is left alone", entry)


def _agreed(directory: Path, choose: Choose) -> int:
    """The wanted one of the steps that process 0 sees."""
    return of_first_process(all_succeed(functools.partial(_wanted, directory, choose)))


def _wanted(directory: Path, choose: Choose) -> int:
    if jax.process_index() > 0:
        return _NONE
    with _reading(directory):
        steps = [int(entry.name) for entry in _numbered(directory) if is_of_a_run(entry)]
    return choose(steps) if steps else _NONE


def _numbered(directory: Path) -> list[Path]:
    entries = list(directory.iterdir()) if directory.is_dir() else []
    return [entry for entry in entries if is_step_name(entry.name) and entry.is_dir()]


def _problems(folder: Path) -> list[str]:
    with _reading(folder):
        problems = problems_of(folder, (jax.process_index(), jax.process_count()))
        if not problems and not is_verifiable(folder):
            logger.warning("%s: has no checksums; it can be read, which is all we know", folder)
        return problems


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Name what cannot be read.

    Raises:
        UserError: the system does not let it be read.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be read: {error.strerror}. That says nothing "
            "about what it holds, so no checkpoint was set aside; mend the permissions or the "
            "storage, and start the same command again"
        ) from None


def _set_aside(folder: Path) -> Path | None:
    """Rename a step; process 0 does, and knows its new name."""
    if jax.process_index() > 0:
        return None
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
