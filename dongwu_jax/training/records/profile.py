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


class Profile:
    """Traces some steps of a run into a folder; a trace that cannot be written does not end it."""

    def __init__(
        self,
        steps: StepRange | None,
        folder: Path,
        pause: Callable[[int], AbstractContextManager[None]],
    ):
        """Nothing is traced before the first of the steps is run.

        Args:
            steps: None: nothing is traced.
            pause: entered while the trace is written, with the step after which that is.
        """
        self._steps, self._folder, self._pause = steps, folder, pause
        self._tracing, self._last, self._calls = False, 0, 0
        self._previous: Any = None

    def begin(self, first: int, last: int) -> None:
        """Steps from `first` + 1 to `last` follow; say so if not all that are to be traced do."""
        if self._steps is None:
            return
        asked = f"--profile-steps {self._steps.first}:{self._steps.last}"
        if self._steps.first <= first:
            logger.warning(
                "%s: this start begins with step %d, so nothing is profiled", asked, first + 1
            )
            self._steps = None
        elif self._steps.first > last:
            logger.warning("%s: this start ends with step %d: nothing is profiled", asked, last)
        elif self._steps.last > last:
            logger.warning("%s: this start ends with step %d, and so does the trace", asked, last)

    def run(self, step: int, program: Callable[..., tuple[Any, Any]], *arguments: Any) -> Any:
        """What `program` gives; a bad step is run more than once, and the one after it, too."""
        if self._steps is None:
            return program(*arguments)
        import jax

        if step == self._steps.first and not self._tracing:
            jax.block_until_ready(self._previous)  # or the trace would begin within the step before
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        state, metrics = program(*arguments)
        self._previous = metrics
        if self._tracing:
            self._last, self._calls = max(step, self._last), self._calls + 1
            if step == self._steps.last:
                jax.block_until_ready(metrics)
                self._write()
        return state, metrics

    def end(self) -> None:
        """No more steps follow: write what has been traced, if it has not been."""
        if self._tracing and self._steps is not None:
            logger.warning(
                "--profile-steps %d:%d: the steps ended with step %d, and so does the trace",
                *(self._steps.first, self._steps.last, self._last),
            )
            self._write()

    def _write(self) -> None:
        import jax

        assert self._steps is not None, "something is traced"
        traced, self._steps, self._tracing = StepRange(self._steps.first, self._last), None, False
        with self._pause(traced.last):
            try:
                jax.profiler.stop_trace()
                _write_table(self._folder, traced, self._calls)
            except (OSError, RuntimeError, UserError) as error:  # a full disk
                logger.warning("%s: the profile could not be written: %s", self._folder, error)


def check_profile_steps(steps: StepRange | None, run_steps: int) -> None:
    """Refuse steps that a run of `run_steps` does not have.

    Raises:
        UserError: all of them come after its last.
    """
    if steps is not None and steps.first > run_steps:
        raise UserError(
            f"--profile-steps {steps.first}:{steps.last}: the run ends with step {run_steps} "
            "(training.duration); choose earlier steps"
        )


def _write_table(folder: Path, steps: StepRange, calls: int) -> None:
    from dongwu_jax.output_files import write_json_file
    from dongwu_jax.training.records.kernel_table import as_record, kernel_table, read_kernels

    logger.info("profiled steps %d to %d; the trace is in %s", steps.first, steps.last, folder)
    try:
        record = as_record(kernel_table(read_kernels(folder)), calls)
    except UserError as error:  # on a CPU
        logger.warning("no table of kernels: %s", error)
        return
    write_json_file(
        folder / TABLE_FILE, {"first_step": steps.first, "last_step": steps.last} | record
    )
