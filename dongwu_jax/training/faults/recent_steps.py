"""What losses and gradient norms are usual: the medians of the last applied steps."""

import math
import statistics
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from dongwu_jax.config.faults import BadStepsConfig


class AppliedStep(NamedTuple):
    """The numbers of a step that was applied."""

    step: int
    loss: float
    gradient_norm: float


class RecentSteps:
    """The last `bad_steps.window` applied steps, and the limits that follow from them.

    The limits of a step never depend on the one before it, which may not have ended when the step
    begins: so they are the same however a run is cut by stops.
    """

    def __init__(self, config: BadStepsConfig):
        self._config = config
        self._applied: deque[AppliedStep] = deque(maxlen=config.window + 1)

    def add(self, step: int, loss: float, gradient_norm: float) -> None:
        """Take note of a step that was applied."""
        self._applied.append(AppliedStep(step, loss, gradient_norm))

    def limits(self, step: int) -> np.ndarray:
        """The largest loss and gradient norm that `step` may have, float32 [2]."""
        window = self._config.window
        known = [entry for entry in self._applied if entry.step < step - 1][-window:]
        limits = [math.inf, math.inf]
        if len(known) == window:
            _, losses, norms = zip(*known, strict=True)
            if self._config.loss_factor is not None:
                limits[0] = self._config.loss_factor * statistics.median(losses)
            if self._config.gradient_norm_factor is not None:
                limits[1] = self._config.gradient_norm_factor * statistics.median(norms)
        return np.asarray(limits, np.float32)

    def to_json(self) -> list[list[Any]]:
        """What a checkpoint keeps."""
        return [list(entry) for entry in self._applied]

    def restore(self, saved: list[list[Any]]) -> None:
        """Go on with what a checkpoint kept."""
        self._applied.clear()
        self._applied.extend(AppliedStep(int(step), *numbers) for step, *numbers in saved)
