"""What becomes of a step whose loss or gradient norm is not finite, or far from what is usual.

Such a step is not applied (`gate`). It is computed once more from the same state and batch: a
second result that differs is a device's fault, not the data's.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dongwu_jax import exit_codes
from dongwu_jax.config.faults import BadStepsConfig
from dongwu_jax.errors import UserError
from dongwu_jax.training.faults.bad_step_record import BadStepRecorder
from dongwu_jax.training.faults.recent_steps import RecentSteps
from dongwu_jax.training.records.run_log import RunLog

logger = logging.getLogger(__name__)

Numbers = Mapping[str, float]

_JUDGED = ("loss", "gradient_norm")


class BadNumbersError(UserError):
    """The numbers are bad, and would be again."""

    exit_code = exit_codes.BAD_NUMBERS


class HardwareFaultError(UserError):
    """The same computation gave two results."""

    exit_code = exit_codes.HARDWARE_FAULT


class BadSteps:
    """Keeps count of steps, and decides what follows a bad one.

    All processes of a run see the same numbers and decide alike; the first keeps the records.
    """

    def __init__(
        self,
        config: BadStepsConfig,
        recorder: BadStepRecorder | None,
        run_log: RunLog,
        exact: bool,
    ):
        """Nothing has happened yet.

        Args:
            recorder: None in all processes but the first.
            exact: whether the same computation always gives the same bits.
        """
        self.config = config
        self._recorder, self._run_log, self._exact = recorder, run_log, exact
        self._recent = RecentSteps(config)
        self._in_a_row = 0

    def limits(self, step: int) -> np.ndarray:
        """The largest loss and gradient norm with which a step is applied, float32 [2]."""
        return self._recent.limits(step)

    def applied(self, step: int, numbers: Numbers) -> None:
        """Take note of a step that was applied."""
        self._recent.add(step, numbers["loss"], numbers["gradient_norm"])
        self._in_a_row = 0

    def judge(self, step: int, numbers: Numbers, again: Numbers | None) -> None:
        """Record a step that was not applied.

        Args:
            again: what computing it once more gave, if that was done.

        Raises:
            HardwareFaultError: it gave something else.
            BadNumbersError: it is one too many, or the run is to stop at the first.
        """
        self._in_a_row += 1
        action = "hardware_fault" if again and self._differ(numbers, again) else self.config.action
        verdict = {
            "reason": self._reason(step, numbers),
            "numbers": _as_json(numbers),
            "computed_again": again and _as_json(again),
            "action": action,
            "in_a_row": self._in_a_row,
        }
        self._run_log.event("bad_step", step=step, **verdict)
        said = (
            f"step {step}: {verdict['reason']}; it was not applied. {self._record(step, verdict)}"
        )
        if action == "hardware_fault":
            raise HardwareFaultError(
                f"{said}. Computed again from the same state and batch it gave "
                f"{_describe(again or {})}: a device is faulty. Stopped without saving; take the "
                "host out, and start the same command again"
            )
        if action == "stop" or self._in_a_row >= self.config.most_in_a_row:
            count = "" if self._in_a_row == 1 else f", the last of {self._in_a_row} in a row"
            raise BadNumbersError(
                f"{said}{count}; stopped without saving. Lower optimizer.learning_rate, lengthen "
                "schedule.warmup, or look at the data"
            )
        logger.warning("%s", said)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a run that goes on from it decides alike."""
        return {"recent": self._recent.to_json(), "in_a_row": self._in_a_row}

    def restore(self, saved: Mapping[str, Any], rolling_back: bool = False) -> None:
        """Go on with what a checkpoint kept; rolling back does not make bad steps undone."""
        self._recent.restore(saved["recent"])
        if not rolling_back:
            self._in_a_row = int(saved["in_a_row"])

    def _reason(self, step: int, numbers: Numbers) -> str:
        loss, norm = numbers["loss"], numbers["gradient_norm"]
        if not math.isfinite(loss + norm):
            return _describe(numbers)
        most_loss, most_norm = self.limits(step).tolist()
        return f"{_describe(numbers)}, above the limits {most_loss:.4g} and {most_norm:.4g}"

    def _differ(self, numbers: Numbers, again: Numbers) -> bool:
        if again["applied"]:
            return True
        return self._exact and _bits(numbers) != _bits(again)

    def _record(self, step: int, verdict: dict[str, Any]) -> str:
        if self._recorder is None:
            return "The first process keeps its record"
        try:
            return f"Its samples are in {self._recorder.write(step, verdict)}"
        except UserError as error:  # a full disk is no reason to end a run that goes on
            return f"Its samples could not be recorded: {error}"


def _describe(numbers: Numbers) -> str:
    return f"loss {numbers['loss']:.6g}, gradient norm {numbers['gradient_norm']:.6g}"


def _bits(numbers: Numbers) -> bytes:
    return np.asarray([numbers[name] for name in _JUDGED], np.float32).tobytes()


def _as_json(numbers: Numbers) -> dict[str, float | str]:
    """JSON has no word for numbers that are none."""
    return {
        name: float(value) if math.isfinite(value) else str(float(value))
        for name, value in numbers.items()
    }


def is_exact(platform: str, deterministic: bool) -> bool:
    """Whether the same computation always gives the same bits."""
    return platform == "cpu" or deterministic
