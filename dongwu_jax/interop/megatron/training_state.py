"""Where a Megatron run stands: iteration, samples, schedule; whether a run of ours can go on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dongwu_jax.config import RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.torch_files.reader import StoredArray


@dataclass(frozen=True)
class MegatronRun:
    """What a checkpoint says of the run that wrote it."""

    path: Path
    iteration: int | None  # None: converted weights, which no run has written
    consumed_samples: int | None
    arguments: Mapping[str, Any]  # Megatron's `args`
    scheduler: Mapping[str, Any]  # `opt_param_scheduler`; empty when it was not saved
    updates: int | None  # that Adam has counted; None when the optimizer was not saved

    def check_position(self, config: RunConfig) -> int:
        """The number of steps done, which must be the same in steps and in samples.

        Raises:
            UserError: a run with this configuration cannot stand where the checkpoint does.
        """
        if not self.iteration:
            raise UserError(
                f"{self.path}: holds weights at iteration 0 or of no iteration, so there is no run "
                "to go on with; start from them: training.initial_weights instead of continue_from"
            )
        self._check_samples(self.iteration, config)
        if self.iteration >= config.steps:
            raise UserError(
                f"{self.path}: is at iteration {self.iteration}, and training.duration="
                f"{config.training.duration} ends at step {config.steps}; training.duration is the "
                "whole length, what Megatron has done included: raise it"
            )
        return self.iteration

    def _check_samples(self, iteration: int, config: RunConfig) -> None:
        batch = config.training.global_batch_size
        advice = (
            "start a new run from its weights (training.initial_weights instead of continue_from)"
        )
        if self.consumed_samples is None:
            raise UserError(
                f"{self.path}: its args have no consumed_train_samples, so the position in the "
                f"data is unknown; {advice}"
            )
        if self.consumed_samples == iteration * batch:
            return
        rampup = self.arguments.get("rampup_batch_size")
        if rampup is not None:
            raise UserError(
                f"{self.path}: was trained with rampup_batch_size={rampup}, so iteration "
                f"{iteration} is not at sample {iteration} x training.global_batch_size={batch}, "
                f"but at {self.consumed_samples}; such a run cannot be continued: {advice}"
            )
        raise UserError(
            f"{self.path}: consumed_train_samples={self.consumed_samples} at iteration {iteration},"
            f" but {iteration} x training.global_batch_size={batch} = {iteration * batch}; set "
            f"training.global_batch_size={self.consumed_samples / iteration:g}, or {advice}"
        )


def updates_done(common: Mapping[str, Any]) -> int | None:
    """The updates that Adam has counted; fewer than iterations where some were skipped.

    torch counts them for each parameter, Apex and Transformer Engine for each group, and torch_dist
    once.

    Args:
        common: what a checkpoint holds besides weights.
    """
    optimizer = common.get("optimizer")
    adam = optimizer.get("optimizer", optimizer) if isinstance(optimizer, Mapping) else None
    if not isinstance(adam, Mapping):
        return None
    state, groups = adam.get("state"), adam.get("param_groups")
    counts: list[Any] = []
    if isinstance(groups, list):
        counts += [group.get("step") for group in groups if isinstance(group, Mapping)]
    if isinstance(state, Mapping):
        counts.append(state.get("common_step"))
        counts += [entry.get("step") for entry in state.values() if isinstance(entry, Mapping)][:1]
    for count in counts:
        value = count.read() if isinstance(count, StoredArray) and count.shape == () else count
        if isinstance(value, int | float | np.ndarray) and value > 0:
            return int(value)
    return None
