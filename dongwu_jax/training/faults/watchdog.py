"""A hang becomes the stacks of all threads and an exit, so that the launcher starts anew."""

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from dongwu_jax import exit_codes
from dongwu_jax.config import RunConfig
from dongwu_jax.config.faults import GuardsConfig
from dongwu_jax.parallel.peers import Peers

_STEPS_REMEMBERED = 100
_STANDING = "standing"
_SECONDS_FOR_ANSWERS = 5.0
# The processes of a run hang together: each has this long to write its stacks before one exits.
_SECONDS_FOR_OTHERS = 10.0
# A hang that also holds Python's lock stops this module's thread; faulthandler's needs no lock.
_SECONDS_UNTIL_FAULTHANDLER = 60.0
_STANDARD_ERROR = 2
_LONGEST_SECONDS = 864_000.0  # ten days; faulthandler's clock takes no number at will


class Watchdog:
    """Ends the process when no step finishes in time.

    A step may take `hang_timeout_factor` times the median step, and at least
    `hang_timeout_min_seconds`; everything before the first step is there, and what `pause`
    announces, may take `hang_timeout_pause_seconds`. Used as a context around the whole run,
    building included; without, it takes note of the steps and ends nothing.
    """

    def __init__(
        self,
        guards: GuardsConfig,
        directory: Path,
        process_id: int,
        ask_others: Callable[[], Sequence[str]] = tuple,
    ):
        """Not yet watching.

        Args:
            directory: where the stacks are written, as `hang.process<process_id>.txt`.
            ask_others: says what each process of the run is doing; asked when there is a hang.
        """
        self._ask_others = ask_others
        self._guards, self._process_id = guards, process_id
        self._path = directory / f"hang.process{process_id}.txt"
        self._seconds: deque[float] = deque(maxlen=_STEPS_REMEMBERED)
        self._changed = threading.Condition()
        self._running = False
        self._last_finish: float | None = None  # None: a pause has come between
        self._finished_step: int | None = None
        self._expect("the start of the run", guards.hang_timeout_pause_seconds)

    def __enter__(self) -> "Watchdog":
        if self._guards.hang_timeout_factor > 0:
            self._running = True
            self._expect("the start of the run", self._guards.hang_timeout_pause_seconds)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._running = False
            self._changed.notify()
        faulthandler.cancel_dump_traceback_later()

    def step_finished(self, step: int) -> None:
        """Say that a step's result is there."""
        now = time.monotonic()
        if self._last_finish is not None:
            self._seconds.append(now - self._last_finish)
        self._last_finish, self._finished_step = now, step
        self._expect_step()

    @contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Wait for something that is no step, under its own limit; `what` names it in a report."""
        self._last_finish = None
        self._expect(what, self._guards.hang_timeout_pause_seconds)
        yield
        self._expect_step()

    def standing(self) -> str:
        """What this process is waiting for."""
        finished = "no step" if self._finished_step is None else f"step {self._finished_step}"
        seconds = time.monotonic() - self._since
        return f"has finished {finished}, {self._what} for {seconds:.0f} s"

    @property
    def step_limit_seconds(self) -> float:
        """How long the next step may take."""
        if not self._seconds:
            return self._guards.hang_timeout_pause_seconds
        usual = self._guards.hang_timeout_factor * statistics.median(self._seconds)
        return min(max(usual, self._guards.hang_timeout_min_seconds), _LONGEST_SECONDS)

    def _expect_step(self) -> None:
        next_step = "the first step"
        if self._finished_step is not None:
            next_step = f"step {self._finished_step + 1}"
        self._expect(next_step, self.step_limit_seconds)

    def _expect(self, what: str, limit_seconds: float) -> None:
        with self._changed:
            self._what, self._limit_seconds = what, limit_seconds
            self._since = time.monotonic()
            self._changed.notify()
        if self._running:
            faulthandler.dump_traceback_later(
                limit_seconds + _SECONDS_UNTIL_FAULTHANDLER, exit=True, file=_STANDARD_ERROR
            )

    def _watch(self) -> None:
        with self._changed:
            while self._running:
                remaining = self._since + self._limit_seconds - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            if self._running:
                self._bark()

    def _bark(self) -> None:
        message = (
            f"{self._what} has not finished for {time.monotonic() - self._since:.0f} s (limit "
            f"{self._limit_seconds:.0f} s) in process {self._process_id}; the stacks of its "
            f"threads follow, and are in {self._path}. Exit code {exit_codes.HANG}; the same "
            "command goes on from the newest checkpoint"
        )
        message = "\n".join([message, *self._ask_others()])
        print(f"error: {message}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(_STANDARD_ERROR, all_threads=True)
        # Not in this thread: the folder may be what hangs.
        writing = threading.Thread(target=self._write_stacks, args=(message,), daemon=True)
        writing.start()
        started = time.monotonic()
        writing.join(_SECONDS_FOR_OTHERS)
        time.sleep(max(started + _SECONDS_FOR_OTHERS - time.monotonic(), 0))
        os._exit(exit_codes.HANG)

    def _write_stacks(self, message: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(self._path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            print(message, file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        os.replace(temporary, self._path)


def make_watchdog(config: RunConfig, peers: Peers) -> Watchdog:
    """The watchdog of a run, which writes into its logging folder.

    Process 0 asks the others how far they are when there is a hang; threads of theirs answer.
    """

    def ask_others() -> list[str]:
        if peers.process_id or len(peers.hosts) == 1:
            return []
        said = peers.switchboard.ask_all(_STANDING, _SECONDS_FOR_ANSWERS)
        return [f"{peers.name(rank)} {said.get(rank, 'does not answer')}" for rank in peers.hosts]

    watchdog = Watchdog(config.guards, config.log_directory, peers.process_id, ask_others)
    peers.switchboard.on_question(_STANDING, watchdog.standing)
    return watchdog
