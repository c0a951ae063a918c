"""Checkpoints of a run: Orbax, atomic, asynchronous, independent of mesh and layout.

A folder of numbered steps; each step holds the items `parameters` (one array per parameter, by
dotted name, float32; converted weights keep their format), `optimizer`, `config` (the resolved
run), `data` (fingerprint and position) and `tokenizer` (its files). A step appears under its number
only when it is complete.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dongwu_jax.config import RunConfig
from dongwu_jax.config.sections import CheckpointConfig
from dongwu_jax.errors import UserError
from dongwu_jax.models.parameters import (
    named_parameters,
    parameter_tree,
)
from dongwu_jax.training.checkpoints.files import FilesHandler, SaveFiles
from dongwu_jax.training.checkpoints.integrity import write_checksums
from dongwu_jax.training.checkpoints.orbax_steps import StepsOfARun
from dongwu_jax.training.checkpoints.stored_weights import (
    DataState,
    check_same_shapes,
    reading,
    storage_problem,
    stored_arrays,
)
from dongwu_jax.training.state import TrainState

logger = logging.getLogger(__name__)


class Checkpoints:
    """Writes and reads the checkpoints of one run."""

    def __init__(
        self, config: CheckpointConfig, completed: Callable[[int], None] = lambda step: None
    ):
        """Open the folder, and make it if there is none.

        Args:
            completed: told each step that is complete, from a thread of its own.

        Raises:
            UserError: it cannot be written.
        """
        policies: list[Any] = [checkpoint_managers.LatestN(config.keep_last)]
        if config.keep_every:
            policies.append(checkpoint_managers.EveryNSteps(config.keep_every))
        self.directory = config.directory.absolute()
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"checkpoint.directory={self.directory}: is a file, not a folder")
        if self.directory.exists() and not os.access(self.directory, os.W_OK):
            raise UserError(f"checkpoint.directory={self.directory}: no permission to write")
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                    enable_async_checkpointing=config.asynchronous,
                    # Else a folder that cannot be made is waited for, for minutes.
                    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                    cleanup_tmp_directories=True,
                    step_name_format=StepsOfARun(),
                ),
                item_handlers={
                    "parameters": ocp.StandardCheckpointHandler(),
                    "optimizer": ocp.StandardCheckpointHandler(),
                    "config": ocp.JsonCheckpointHandler(),
                    "data": ocp.JsonCheckpointHandler(),
                    "tokenizer": FilesHandler(),
                },
            )
        except OSError as error:
            raise UserError(f"checkpoint.directory={self.directory}: {error}") from None
        self._saving: int | None = None
        self._failed: set[int | None] = set()
        self._completed = completed
        self._completing = threading.Thread()

    @property
    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def reload(self) -> None:
        """Look again at which steps there are, when some were set aside."""
        self._manager.reload()

    def save(
        self,
        state: TrainState,
        run: RunConfig,
        data_state: DataState,
        tokenizer_files: Sequence[Path],
    ) -> None:
        """Write the state as step `state.step`; returns once the arrays are copied off the devices.

        Raises:
            UserError: the folder cannot be written, now or by the write that this one waits for.
        """
        step = int(state.step)
        self._recount()
        if step in self._manager.all_steps():
            return
        self._remove_unfinished()
        self._failed.discard(step)
        with self._writing(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    parameters=ocp.args.StandardSave(named_parameters(state.parameters)),
                    optimizer=ocp.args.StandardSave(state.optimizer_state),
                    config=ocp.args.JsonSave(run.model_dump(mode="json")),
                    data=ocp.args.JsonSave(data_state),
                    tokenizer=SaveFiles(tokenizer_files),
                ),
            )

        self._complete(step)

    def _complete(self, step: int) -> None:
        """Write checksums as soon as the step is complete, while training goes on."""

        def complete() -> None:
            try:
                self._manager.wait_until_finished()
            except Exception:  # the main thread is told of it, too
                return
            share = jax.process_index(), jax.process_count()
            folder = self.directory / str(step)
            try:
                write_checksums(folder, share)
            except (OSError, UserError) as error:
                if folder.exists():  # else it has made room for newer ones
                    logger.warning("%s: stays without checksums: %s", folder, error)
            self._completed(step)

        self._completing = threading.Thread(target=complete, name="checksums")
        self._completing.start()

    def restore(self, abstract: Any, step: int | None = None) -> tuple[TrainState, DataState]:
        """A checkpoint, laid out as `abstract` (see `abstract_state`) says.

        Args:
            step: None: the newest.

        Raises:
            UserError: the checkpoint belongs to another architecture or optimizer.
        """
        step = self.latest_step if step is None else step
        assert step is not None, "restore is called when there is a step"
        wanted = named_parameters(abstract.parameters)
        folder = self.directory / str(step)
        check_same_shapes(folder, stored_arrays(folder), wanted)
        with reading(folder):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    parameters=ocp.args.StandardRestore(wanted),
                    optimizer=ocp.args.StandardRestore(abstract.optimizer_state),
                    data=ocp.args.JsonRestore(),
                ),
            )
        state = TrainState(
            jax.device_put(np.int32(step), abstract.step.sharding),
            parameter_tree(restored.parameters),
            restored.optimizer,
        )
        return state, restored.data

    def wait(self) -> None:
        """Until what is being written is complete.

        Raises:
            UserError: it could not be written.
        """
        with self._writing(self._saving):
            self._manager.wait_until_finished()
        self._remove_unfinished()
        self._join()

    def close(self) -> None:
        """Finish writing and release threads.

        Raises:
            UserError: what was being written could not be.
        """
        with self._writing(self._saving):
            self._manager.close()
        self._remove_unfinished()
        self._join()

    @contextmanager
    def _writing(self, step: int | None) -> Iterator[None]:
        """Name the folder when a step cannot be written, and leave nothing of it that takes room.

        Raises:
            UserError: it cannot.
        """
        self._saving = step
        try:
            yield
        except Exception as error:
            problem = storage_problem(error)
            self._failed.add(step)
            self._remove_unfinished()
            raise UserError(
                f"{self.directory}: the checkpoint of step {step} could not be written: {problem}; "
                "make room or mend the folder. The same command goes on from the newest complete "
                "step"
            ) from None

    def _remove_unfinished(self) -> None:
        """Remove what is left of steps that could not be written.

        More than once: threads may still write when the step has failed.
        """
        if jax.process_index() == 0:
            for step in self._failed:
                for unfinished in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
                    shutil.rmtree(unfinished, ignore_errors=True)

    def _recount(self) -> None:
        """Have Orbax look again at what there is, after a failure.

        It forgets the steps that one was to replace when it begins to write it. They would stay
        for ever if it fails, and take the room that the next one needs.
        """
        if not self._failed:
            return
        with suppress(OSError):  # a folder that is gone may come back, and what it holds
            if {*os.listdir(self.directory)} >= {*map(str, self._manager.all_steps())}:
                self._manager.reload()

    def _join(self) -> None:
        if self._completing.ident is not None:
            self._completing.join()
