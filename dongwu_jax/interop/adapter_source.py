"""Reading a checkpoint of adapters (LoRA): merged into the weights that they were trained on."""

from pathlib import Path

import numpy as np

from dongwu_jax.config import ModelConfig, RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.loading import fit_vocabulary
from dongwu_jax.interop.model_source import ModelSource, StoredName
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.models.lora import target_names
from dongwu_jax.models.parameters import abstract_parameters, logical_axes, named_parameters
from dongwu_jax.models.rope_frequencies import with_new_base
from dongwu_jax.training.checkpoints.base_weights import has_kept_bits, refuse_base
from dongwu_jax.training.checkpoints.folders import is_checkpoint, newest_step, tokenizer_folder
from dongwu_jax.training.checkpoints.stored_weights import WeightReader


class MergedSource:
    """A checkpoint of adapters as the model that it stands for.

    Every target is read as W + scale x down x up, computed in float32.
    """

    format = "dongwu"

    def __init__(self, path: Path, adapters: WeightReader, base: ModelSource, origin: Path):
        """Take open files; they are closed with this source.

        Args:
            origin: where `base` was found.

        Raises:
            UserError: `base` has other tensors than the weights that the adapters were trained on.
        """
        self.adapters, self.run = adapters, adapters.run
        self.config = with_new_base(self.run.model)  # no other format has NTK scaling
        self.origin = origin
        self._base = base
        self._shapes = named_parameters(abstract_parameters(self.run.model))
        self._axes = logical_axes(self.run.model)
        self._targets = set(target_names(self.run.model, self.run.lora))
        for name in sorted({*self.names()} ^ {*base.names()}):
            refuse_base(name, origin)
        self.iteration = adapters.iteration or None
        self.consumed_samples = adapters.consumed_samples
        self.notes = [
            f"adapters of rank {self.run.lora.rank} on {', '.join(self.run.lora.targets)}, merged "
            f"into {origin}"
        ]
        self.tokenizer = tokenizer_folder(path) or base.tokenizer
        self.description = f"dongwu checkpoint of adapters, step folder {newest_step(path).name}"

    @property
    def dtype(self) -> str:
        """That of the weights beneath the adapters."""
        return self._base.dtype

    @property
    def base_config(self) -> ModelConfig:
        """The architecture of the weights beneath the adapters."""
        return self._base.config

    def names(self) -> list[str]:
        """Our dotted names of all tensors."""
        return [tensor.name for tensor in model_tensors(self.config)]

    def read(self, name: str) -> np.ndarray:
        """One tensor: float32 where an adapter is merged, else as it is stored.

        Raises:
            UserError: it is not the tensor that the adapters were trained on.
        """
        values = self._read_base(name)
        if name not in self._targets:
            return values
        down, up = self.adapters[f"{name}.down"], self.adapters[f"{name}.up"]
        added = np.tensordot(down.astype(np.float32), up.astype(np.float32), axes=1)
        return values.astype(np.float32) + np.float32(self.run.lora.scale) * added

    def check_base(self) -> None:
        """Read all weights beneath the adapters.

        Raises:
            UserError: a tensor is not the one that the adapters were trained on.
        """
        for name in self.names():
            self._read_base(name)

    def stored(self) -> list[StoredName]:
        """The adapters, as the checkpoint names them."""
        return [
            (name, tuple(array.shape), array.dtype.name)
            for name, array in self.adapters.arrays.items()
        ]

    def close(self) -> None:
        """Close the weights beneath."""
        self._base.close()

    def _read_base(self, name: str) -> np.ndarray:
        """A tensor beneath the adapters with the rows of vocabulary that the run had."""
        values, shape, axes = self._base.read(name), self._shapes[name].shape, self._axes[name]
        sizes = zip(axes, values.shape, shape, strict=True)
        if any(axis != "vocab" and found != wanted for axis, found, wanted in sizes):
            refuse_base(name, self.origin)
        values = fit_vocabulary(values, shape, axes, name)
        kept = self.adapters.base_weights
        if kept is not None and not has_kept_bits(kept, name, values):
            refuse_base(name, self.origin)
        return values


def base_weights_of(run: RunConfig, checkpoint: Path, given: Path | None) -> Path:
    """Where the weights lie that a run's adapters were trained on.

    Args:
        given: a folder that the user names; None: the one that the run began with.

    Raises:
        UserError: they are not there.
    """
    if given is not None and not given.exists():
        raise UserError(f"--base-weights {given}: no such file or folder")
    path = given or run.training.initial_weights
    assert path is not None, "a run with adapters has initial weights"
    if not path.exists() or _is_itself(path, checkpoint):
        raise UserError(
            f"{checkpoint}: holds adapters alone, and the weights that they were trained on are "
            f"not at {path}; say where they are now (tools/convert.py --base-weights FOLDER), and "
            "convert to have one model"
        )
    return path


def _is_itself(path: Path, checkpoint: Path) -> bool:
    """Whether the adapters were moved to where the weights beneath them had been."""
    return is_checkpoint(path) and newest_step(path).samefile(newest_step(checkpoint))
