"""The compiled step, one ahead of what the host knows of the step before."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dongwu_jax.training.faults.bad_steps import BadSteps, Numbers
from dongwu_jax.training.gate import Gate
from dongwu_jax.training.losses import Batch
from dongwu_jax.training.records.profile import Profile
from dongwu_jax.training.state import TrainState
from dongwu_jax.training.trained_weights import Frozen

Finished = Callable[[int, dict[str, float] | None, float], None]
"""Told of each step whose result is there: its number, its metrics if it was applied, and the
seconds for which it was waited for."""

RollBack = Callable[[TrainState, int], TrainState]
"""Gives the state of the newest checkpoint, numbered as the given step."""


@dataclasses.dataclass(frozen=True)
class _Begun:
    step: int
    batch: Batch
    metrics: dict[str, jax.Array]


class Stepping:
    """Dispatches steps, and looks at each result while the devices work on the next one.

    A bad step leaves the state as it was, and so does the one that was dispatched after it, which
    is then begun again.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        frozen: Frozen,
        bad_steps: BadSteps,
        finished: Finished,
        roll_back: RollBack,
        profile: Profile,
    ):
        self._program, self._frozen, self._profile = program, frozen, profile
        self._bad_steps, self._finished, self._roll_back = bad_steps, finished, roll_back
        self._begun: _Begun | None = None

    def advance(self, state: TrainState, step: int, batch: Batch) -> TrainState:
        """Begin a step, and wait for the one before it.

        Raises:
            BadNumbersError, HardwareFaultError: see `BadSteps.judge`.
        """
        before = self._begun
        go = np.bool_(True) if before is None else before.metrics["applied"]
        state, metrics = self._run(state, step, batch, go)
        if before is not None and not (numbers := self._numbers(before))["applied"]:
            return self.advance(self._after_bad(state, before, numbers), step, batch)
        self._begun = _Begun(step, batch, metrics)
        return state

    def settle(self, state: TrainState) -> TrainState:
        """Wait for the step that was begun last, if that has not been done.

        Raises:
            BadNumbersError, HardwareFaultError: see `BadSteps.judge`.
        """
        begun, self._begun = self._begun, None
        if begun is None or (numbers := self._numbers(begun))["applied"]:
            return state
        return self._after_bad(state, begun, numbers)

    def _run(self, state: TrainState, step: int, batch: Batch, go: Any) -> Any:
        gate = Gate(go, self._bad_steps.limits(step))  # type: ignore[arg-type]
        return self._profile.run(step, self._program, state, batch, self._frozen, gate)

    def _numbers(self, begun: _Begun) -> Numbers:
        waiting = time.perf_counter()
        numbers = {name: float(value) for name, value in begun.metrics.items()}
        waited = time.perf_counter() - waiting
        reported = {name: value for name, value in numbers.items() if name != "applied"}
        if numbers["applied"]:
            self._bad_steps.applied(begun.step, numbers)
        self._finished(begun.step, reported if numbers["applied"] else None, waited)
        return numbers

    def _after_bad(self, state: TrainState, bad: _Begun, numbers: Numbers) -> TrainState:
        """The state from which the next step goes on."""
        self._begun = None
        again = None
        if self._bad_steps.config.recompute:
            state, metrics = self._run(state, bad.step, bad.batch, np.bool_(True))
            again = {name: float(value) for name, value in metrics.items()}
        self._bad_steps.judge(bad.step, numbers, again)
        if self._bad_steps.config.action == "rollback":
            return self._roll_back(state, bad.step)
        return renumbered(state, bad.step)


def renumbered(state: TrainState, step: int) -> TrainState:
    """The same state as that of another step."""
    return dataclasses.replace(state, step=jax.device_put(np.int32(step), state.step.sharding))
