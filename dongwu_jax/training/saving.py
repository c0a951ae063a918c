"""Saving a run: a checkpoint that cannot be written does not end it while there are older ones."""

import logging
from collections.abc import Sequence
from pathlib import Path

from dongwu_jax.config import RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.training.checkpoints import Checkpoints
from dongwu_jax.training.run_log import RunLog
from dongwu_jax.training.state import TrainState
from dongwu_jax.training.stored_weights import DataState

logger = logging.getLogger(__name__)


class Saving:
    """Writes the checkpoints of a run, and says when one could not be written."""

    def __init__(
        self,
        config: RunConfig,
        checkpoints: Checkpoints,
        tokenizer_files: Sequence[Path],
        run_log: RunLog,
    ):
        self._config, self._checkpoints = config, checkpoints
        self._tokenizer_files, self._run_log = tokenizer_files, run_log

    def save(self, state: TrainState, data_state: DataState) -> None:
        """Begin to write a checkpoint, when the one before it is complete.

        One that fails is said, and the next one is tried when it is due.

        Raises:
            UserError: it failed, and there is no older one.
        """
        self.settle()
        try:
            self._save(state, data_state)
        except UserError as error:
            self._bear(error)

    def save_last(self, state: TrainState, data_state: DataState) -> None:
        """Write a checkpoint, and wait until it is complete.

        Raises:
            UserError: it could not be written.
        """
        self.settle()
        self._save(state, data_state)
        self._checkpoints.wait()

    def settle(self) -> None:
        """Until what is being written is complete, or has failed.

        Raises:
            UserError: it failed, and there is no older one.
        """
        try:
            self._checkpoints.wait()
        except UserError as error:
            self._bear(error)

    def close(self) -> None:
        """Release what writing needs; a write that still fails is of a run that has failed."""
        try:
            self._checkpoints.close()
        except UserError as error:
            logger.warning("%s", error)

    def _save(self, state: TrainState, data_state: DataState) -> None:
        self._checkpoints.save(state, self._config, data_state, self._tokenizer_files)

    def _bear(self, error: UserError) -> None:
        newest = self._checkpoints.latest_step
        self._run_log.event("checkpoint_failed", message=str(error), newest=newest)
        if newest is None:
            raise error
        logger.warning(
            "%s. The run goes on; the newest checkpoint is that of step %d, the next one is due "
            "after %d steps",
            *(error, newest, self._config.checkpoint.interval),
        )
