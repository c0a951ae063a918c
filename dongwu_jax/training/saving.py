"""Saving a run and going on from what was saved.

A checkpoint that cannot be written does not end the run while there are older ones.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dongwu_jax.config import RunConfig
from dongwu_jax.data.fingerprint import Fingerprint
from dongwu_jax.data.gpt_dataset import SampleSource, samples_drawn
from dongwu_jax.errors import UserError
from dongwu_jax.training.checkpoints.base_weights import BaseWeights, check_same_base
from dongwu_jax.training.checkpoints.damaged import set_damaged_aside
from dongwu_jax.training.checkpoints.resume import check_same_data, check_same_run
from dongwu_jax.training.checkpoints.store import Checkpoints
from dongwu_jax.training.faults.bad_steps import BadSteps
from dongwu_jax.training.records.run_log import RunLog
from dongwu_jax.training.state import TrainState
from dongwu_jax.training.stepping import renumbered

logger = logging.getLogger(__name__)


@dataclass
class Saving:
    """Writes and restores the state of a run, with all that must go on as it was.

    Args:
        samples: the run's training samples, counted in its log.
        base_weights: what tells the weights beneath adapters; empty: there are none.
        abstract: the state's shapes, dtypes and sharding.
        last_saved: the step of the newest checkpoint.
    """

    config: RunConfig
    checkpoints: Checkpoints
    tokenizer_files: Sequence[Path]
    run_log: RunLog
    fingerprint: Fingerprint
    samples: SampleSource
    bad_steps: BadSteps
    base_weights: BaseWeights
    abstract: TrainState
    last_saved: int = 0

    def restore(self) -> TrainState:
        """The newest checkpoint's state.

        Raises:
            UserError: it is of another run, or cannot be read.
        """
        directory = self.checkpoints.directory
        check_same_run(directory, self.config)
        state, data_state = self.checkpoints.restore(self.abstract)
        check_same_data(directory, data_state, self.fingerprint, self.config)
        if self.base_weights:
            origin = self.config.training.initial_weights
            check_same_base(data_state["base_weights"], self.base_weights, origin)
        self.bad_steps.restore(data_state.get("bad_steps") or self.bad_steps.to_json())
        self.last_saved = int(state.step)
        logger.info("resumed at step %d from %s", self.last_saved, directory)
        return state

    def roll_back(self, state: TrainState, step: int) -> TrainState:
        """A good checkpoint's state in the place of that after `step`, which it frees.

        Raises:
            UserError: the checkpoints cannot be read.
        """
        self.settle()
        directory, log = self.checkpoints.directory, self.run_log
        target = set_damaged_aside(directory, log, self._newest_due)
        if target is None:
            logger.warning("no good checkpoint to roll back to: only step %d is left out", step)
            return renumbered(state, step)
        self.checkpoints.reload()
        for leaf in jax.tree.leaves(state):  # there may be no room for two
            leaf.delete()
        state, data_state = self.checkpoints.restore(self.abstract, target)
        kept = data_state.get("bad_steps") or self.bad_steps.to_json()
        self.bad_steps.restore(kept, rolling_back=True)
        logger.warning("rolled back to step %d; going on with step %d", target, step + 1)
        self.run_log.event("rollback", step=step, to=target)
        return renumbered(state, step)

    def _newest_due(self, steps: Sequence[int]) -> int:
        """The newest of some steps that an uninterrupted run has saved, too; if none has, of all.

        So a rollback does not depend on where the run was stopped.
        """
        interval = self.config.checkpoint.interval
        due = [step for step in steps if step > 0 and step % interval == 0]
        return max(due or steps)

    def save(self, state: TrainState, step: int) -> None:
        """Begin to write a checkpoint, when the one before it is complete.

        One that fails is said, and the next one is tried when it is due.

        Raises:
            UserError: it failed, and there is no older one.
        """
        self.settle()
        try:
            self._save(state, step)
        except UserError as error:
            self._bear(error)

    def save_last(self, state: TrainState, step: int) -> None:
        """Write a checkpoint, and wait until it is complete.

        Raises:
            UserError: it could not be written.
        """
        self.settle()
        self._save(state, step)
        self.checkpoints.wait()

    def settle(self) -> None:
        """Until what is being written is complete, or has failed.

        Raises:
            UserError: it failed, and there is no older one.
        """
        try:
            self.checkpoints.wait()
        except UserError as error:
            self._bear(error)

    def close(self) -> None:
        """Release what writing needs; a write that still fails is of a run that has failed."""
        try:
            self.checkpoints.close()
        except UserError as error:
            logger.warning("%s", error)

    def _save(self, state: TrainState, step: int) -> None:
        batch, first = self.config.training.global_batch_size, self.last_saved
        data_state: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "consumed_samples": step * batch,
            "bad_steps": self.bad_steps.to_json(),
        }
        if self.base_weights:
            data_state["base_weights"] = self.base_weights
        self.checkpoints.save(state, self.config, data_state, self.tokenizer_files)
        if step > first:
            samples = samples_drawn(self.samples, first * batch, step * batch)
            self.run_log.event("data", first_step=first, last_step=step, samples=samples)
            self.last_saved = step

    def _bear(self, error: UserError) -> None:
        newest = self.checkpoints.latest_step
        self.run_log.event("checkpoint_failed", message=str(error), newest=newest)
        if newest is None:
            raise error
        logger.warning(
            "%s. The run goes on; the newest checkpoint is that of step %d, the next one is due "
            "after %d steps",
            *(error, newest, self.config.checkpoint.interval),
        )
