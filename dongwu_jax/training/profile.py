"""A trace of some steps of a run, and the table of kernels that its page shows."""

import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dongwu_jax.errors import UserError

logger = logging.getLogger(__name__)

TABLE_FILE = "kernels.json"
_MOST_STEPS = 100  # every kernel of every step is written down


@dataclass(frozen=True)
class StepRange:
    """Steps `first` to `last`, both included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "StepRange":
        """Read FIRST:LAST.

        Raises:
            UserError: it is something else, or too long a stretch.
        """
        match = re.fullmatch(r"(\d+):(\d+)", text)
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= first <= last:
            raise UserError(
                f"--profile-steps {text}: write FIRST:LAST, both from 1 and both included, "
                "e.g. 10:13"
            )
        if last - first >= _MOST_STEPS:
            raise UserError(
                f"--profile-steps {text}: are {last - first + 1} steps; a trace holds every kernel "
                f"of each, take at most {_MOST_STEPS}"
            )
        return cls(first, last)

    @property
    def count(self) -> int:
        """Number of steps."""
        return self.last - self.first + 1


def profiled(
    train_step: Callable[..., tuple[Any, Any]],
    next_step: int,
    steps: StepRange,
    folder: Path,
    pause: AbstractContextManager[None],
) -> Callable[..., tuple[Any, Any]]:
    """`train_step`, but with a trace of some of its calls in `folder`.

    Args:
        next_step: the step of the first call.
        pause: entered while the trace is written.
    """
    import jax

    if next_step > steps.first:
        logger.warning(
            "--profile-steps %d:%d: this start begins with step %d, so nothing is profiled",
            *(steps.first, steps.last, next_step),
        )
        return train_step
    upcoming, previous = next_step, None

    def step(*arguments: Any) -> tuple[Any, Any]:
        nonlocal upcoming, previous
        if upcoming == steps.first:
            jax.block_until_ready(previous)  # or the trace would begin within the step before
            jax.profiler.start_trace(str(folder))
        state, metrics = train_step(*arguments)
        if upcoming == steps.last:
            jax.block_until_ready(metrics)
            with pause:
                jax.profiler.stop_trace()
                _write_table(folder, steps)
        upcoming, previous = upcoming + 1, metrics
        return state, metrics

    return step


def _write_table(folder: Path, steps: StepRange) -> None:
    from dongwu_jax.output_files import write_json_file
    from dongwu_jax.training.kernel_table import as_record, kernel_table, read_kernels

    logger.info("profiled steps %d to %d; the trace is in %s", steps.first, steps.last, folder)
    try:
        record = as_record(kernel_table(read_kernels(folder)), steps.count)
    except UserError as error:  # on a CPU
        logger.warning("no table of kernels: %s", error)
        return
    write_json_file(
        folder / TABLE_FILE, {"first_step": steps.first, "last_step": steps.last} | record
    )
