"""How far a run is: told of every step and every pause, and hands on what others want to know."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from dongwu_jax.config import RunConfig
from dongwu_jax.training.faults.stragglers import Stragglers
from dongwu_jax.training.faults.watchdog import Watchdog
from dongwu_jax.training.records.reports import Metrics, Reports, open_reports
from dongwu_jax.training.records.run_log import RunLog
from dongwu_jax.training.records.throughput import Stopwatch, Throughput


class Progress:
    """Times steps and pauses, for the watchdog, the reports, the run's log and the stragglers.

    Attributes:
        last_finished: the last step whose result is there.
    """

    def __init__(
        self,
        config: RunConfig,
        watchdog: Watchdog,
        run_log: RunLog,
        throughput: Throughput,
        stragglers: Stragglers,
    ):
        self._config, self._watchdog, self._run_log = config, watchdog, run_log
        self._throughput, self._stragglers = throughput, stragglers
        self._stopwatch, self._reports = Stopwatch(), Reports()
        self._device_wait_seconds = 0.0
        self.last_finished = self._last_reported = 0
        self._always_reported: set[int] = set()

    def begin(self, first: int, last: int, resumed: bool) -> None:
        """Steps from `first` + 1 to `last` follow; those two are always reported.

        Args:
            resumed: whether a checkpoint of this run is continued, whose metrics are kept.
        """
        self.last_finished = self._last_reported = first
        self._always_reported = {first + 1, last}
        if jax.process_index() == 0:
            self._reports = open_reports(self._config, first, resumed)

    def begin_steps(self) -> None:
        """What comes before the first step does not count as its time."""
        self._stopwatch.lap()

    def report_also(self, step: int) -> None:
        """Have a step reported, whatever the interval."""
        self._always_reported.add(step)

    def waited_for_data(self, seconds: float) -> None:
        """Take note of time that the devices may have been without work."""
        self._stopwatch.data_wait_seconds += seconds

    def step_finished(self, step: int, metrics: Metrics | None, device_wait_seconds: float) -> None:
        """A step's result is there: report it, if it is due.

        Args:
            metrics: None: the step was not applied.
            device_wait_seconds: how long this process waited for its devices to get there.
        """
        self._watchdog.step_finished(step)
        self.last_finished = step
        self._device_wait_seconds += device_wait_seconds
        due = step % self._config.logging.interval == 0 or step in self._always_reported
        if metrics is None or not due:
            return
        seconds, waited = self._stopwatch.lap()
        steps, self._last_reported = step - self._last_reported, step
        on_its_own = max(seconds - self._device_wait_seconds, 0.0)
        self._device_wait_seconds = 0.0
        self._stragglers.step_times(step, steps, on_its_own, seconds)
        self.report(step, metrics | self._throughput.figures(steps, seconds, waited))

    def report(self, step: int, metrics: Metrics) -> None:
        """Report metrics of a step."""
        self._reports.write(step, metrics)

    @contextmanager
    def pausing(self, what: str, kind: str, step: int) -> Iterator[None]:
        """Something that is no step: `what` for people, `kind` for the run's log."""
        started = time.perf_counter()
        with self._watchdog.pause(what), self._run_log.pause(kind, step):
            yield
        self._stopwatch.exclude(time.perf_counter() - started)

    def close(self) -> None:
        """Write what is still to be reported."""
        self._reports.close()
