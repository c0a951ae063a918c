"""All reports of a run together: one that cannot be written is said, and the run goes on."""

import logging
from collections.abc import Callable, Sequence

from dongwu_jax.training.reports import Metrics, Report

logger = logging.getLogger(__name__)


class Reports:
    """Writes metrics to each report, and says when one begins to fail."""

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
