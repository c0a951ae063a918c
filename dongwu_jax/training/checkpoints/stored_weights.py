"""Checkpoints read and written without a run: weights by name, and the run that wrote them."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from dongwu_jax.config import ModelConfig, RunConfig, parse_config
from dongwu_jax.config.sections import DataConfig
from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object
from dongwu_jax.models.parameters import abstract_parameters, named_parameters
from dongwu_jax.training.checkpoints.base_weights import BaseWeights
from dongwu_jax.training.checkpoints.files import FilesHandler, SaveFiles
from dongwu_jax.training.checkpoints.folders import newest_step, older_steps
from dongwu_jax.training.checkpoints.integrity import check_intact
from dongwu_jax.training.checkpoints.streamed_weights import (
    ArrayReader,
    StoredShape,
    UnreadArray,
    unread_arrays_handler,
)
from dongwu_jax.training.trained_weights import abstract_trained

DataState = dict[str, Any]


def read_run_config(path: Path) -> RunConfig:
    """The run that wrote the newest checkpoint at `path`.

    Raises:
        UserError: there is no complete checkpoint, or its settings are not what was written.
    """
    step = newest_step(path)
    check_intact(step, "config")
    return parse_config(read_json_object(step / "config" / "metadata"), source=str(step))


def read_model_config(path: Path) -> ModelConfig:
    """The architecture of the newest checkpoint at `path`.

    Where its settings are damaged, that of one before it, from which the run is going to go on.
    """
    newest = newest_step(path)
    try:
        return read_run_config(newest).model
    except UserError:
        for older in older_steps(newest):
            with contextlib.suppress(UserError):
                return read_run_config(older).model
        raise


class WeightReader(Mapping[str, np.ndarray]):
    """The weights of a checkpoint by dotted name, each read when it is asked for, as stored.

    Before the first is read, all are compared with their checksums, if they have any.
    """

    def __init__(self, path: Path):
        """Open the newest step at `path`.

        Raises:
            UserError: there is no complete checkpoint, or it is damaged.
        """
        step = newest_step(path)
        check_intact(step, "config", "data", "tokenizer")
        self.run = read_run_config(step)
        self.iteration = int(step.name)  # training steps done; 0: weights alone
        data_state = _data_state(step)
        self.consumed_samples: int | None = data_state.get("consumed_samples")
        self.base_weights: BaseWeights | None = data_state.get("base_weights")  # beneath adapters
        shapes = named_parameters(abstract_trained(self.run))
        try:
            self.arrays = stored_arrays(step)
            check_same_shapes(step, self.arrays, shapes)
        except UserError:
            check_intact(step, "parameters")  # which says more of damage
            raise
        self._step, self._names = step, list(shapes)
        self._reader = ArrayReader(step / "parameters")
        self._intact = False

    @property
    def dtype(self) -> str:
        """Format of the stored weights, that of the embedding, e.g. "bfloat16"."""
        return self.arrays["embed_tokens"].dtype.name

    def __getitem__(self, name: str) -> np.ndarray:
        if not self._intact:
            check_intact(self._step, "parameters")
            self._intact = True
        with reading(self._step):
            return self._reader.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save_weights(
    path: Path,
    config: ModelConfig,
    dtype: np.dtype,
    read: Callable[[str], np.ndarray],
    tokenizer_files: Sequence[Path],
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write weights alone as step 0 of a new checkpoint folder, without optimizer state.

    Args:
        dtype: format of the stored weights.
        read: gives one tensor by dotted name in that format, in any memory order; called once for
            each, when the one before it is written.
        progress: told the bytes of each tensor that has been written.
    """
    run = RunConfig(model=config, data=DataConfig(sequence_length=config.max_position_embeddings))
    arrays = {
        name: UnreadArray(tuple(shape.shape), dtype, functools.partial(read, name), progress)
        for name, shape in named_parameters(abstract_parameters(config)).items()
    }
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    handlers = {
        "parameters": unread_arrays_handler(),
        "config": ocp.JsonCheckpointHandler(),
        "tokenizer": FilesHandler(),
    }
    with ocp.CheckpointManager(path.absolute(), options=options, item_handlers=handlers) as manager:
        manager.save(
            0,
            args=ocp.args.Composite(
                parameters=ocp.args.PyTreeSave(arrays),
                config=ocp.args.JsonSave(run.model_dump(mode="json")),
                tokenizer=SaveFiles(tokenizer_files),
            ),
        )


@contextmanager
def reading(step: Path) -> Iterator[None]:
    """Name the checkpoint when Orbax or TensorStore cannot make sense of its files.

    Raises:
        UserError: they cannot, or may not read them.
    """
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{error.filename or step}: cannot be read: {error.strerror}") from None
    except Exception as error:
        raise UserError(
            f"{step}: is damaged or incomplete: {storage_problem(error)}; restore its files, or "
            "move it away to use the step before it"
        ) from None


def storage_problem(error: Exception) -> str:
    """What the storage said, on one line; errors of other kinds are raised again."""
    if "arrier" in str(error):  # this process has failed before, or another has
        earlier = error.__context__
        while earlier is not None and "arrier" in str(earlier):
            earlier = earlier.__context__
        if not isinstance(earlier, OSError | ValueError):
            return "not all processes came to its end; look at the messages of the others"
        error = earlier
    # Orbax wraps what TensorStore says of arrays in a bare Exception.
    cause = error.__cause__ if type(error) is Exception else error
    if not isinstance(cause, OSError | ValueError | KeyError):
        raise error
    return str(cause).partition("\n")[0][:300]


def _data_state(step: Path) -> DataState:
    """Where a step stands in the data; empty where only weights were kept."""
    if not (step / "data").is_dir():
        return {}
    file = step / "data" / "metadata"
    data_state = read_json_object(file)
    samples, base = (data_state.get(name) for name in ("consumed_samples", "base_weights"))
    sound = samples is None or (type(samples) is int and samples >= 0)
    if base is not None:
        sound = sound and isinstance(base, dict) and isinstance(base.get("bfloat16"), dict)
        sound = sound and isinstance(base.get("float32", {}), dict)
    if not sound:
        raise UserError(f"{file}: is damaged; restore it, or use another step")
    return data_state


def stored_arrays(step: Path) -> dict[str, StoredShape]:
    """Shape and dtype of each parameter of a step, by dotted name."""
    with reading(step):
        os.listdir(step / "parameters")  # Orbax takes one that it may not look into for empty
        return ArrayReader(step / "parameters").describe()


def check_same_shapes(
    step: Path, stored: Mapping[str, StoredShape], wanted: Mapping[str, Any]
) -> None:
    """Compare names and shapes before Orbax would fail on them one by one.

    Raises:
        UserError: naming the first parameters that differ.
    """
    found = {name: tuple(leaf.shape) for name, leaf in stored.items()}
    expected = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    if found == expected:
        return
    differing = [
        f"{name}: {found.get(name, 'absent')} in the checkpoint, "
        f"{expected.get(name, 'absent')} here"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    shown = "\n  ".join(differing[:5]) + ("\n  ..." if len(differing) > 5 else "")
    raise UserError(f"{step}: was written by another model configuration:\n  {shown}")
