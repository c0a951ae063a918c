"""Reading a checkpoint of adapters (LoRA): merged into the weights that they were trained on."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dongwu_jax.config import RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.model_source import ModelSource, StoredName
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.models.lora import target_names
from dongwu_jax.models.rope_frequencies import with_new_base
from dongwu_jax.training.base_weights import bit_sum, refuse_base
from dongwu_jax.training.checkpoint_folders import newest_step, tokenizer_folder
from dongwu_jax.training.stored_weights import WeightReader


class MergedSource:
    """A checkpoint of adapters as the model that it stands for.

    Every target is read as W + scale x down x up, computed in float32.
    """

    format = "dongwu"

    def __init__(self, path: Path, adapters: WeightReader, base: ModelSource, origin: Path):
        """Take open files; they are closed with this source.

        Args:
            origin: where `base` was found.
        """
        self.adapters, self.run = adapters, adapters.run
        self.config = with_new_base(self.run.model)  # no other format has NTK scaling
        self.origin = origin
        self._base = base
        self._targets = set(target_names(self.run.model, self.run.lora))
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

    def names(self) -> list[str]:
        """Our dotted names of all tensors."""
        return [tensor.name for tensor in model_tensors(self.config)]

    def read(self, name: str) -> np.ndarray:
        """One tensor: float32 where an adapter is merged, else as it is stored.

        Raises:
            UserError: it is not the tensor that the adapters were trained on.
        """
        values = self._base.read(name)
        self._check(name, values)
        if name not in self._targets:
            return values
        down, up = self.adapters[f"{name}.down"], self.adapters[f"{name}.up"]
        added = np.tensordot(down.astype(np.float32), up.astype(np.float32), axes=1)
        return values.astype(np.float32) + np.float32(self.run.lora.scale) * added

    def stored(self) -> list[StoredName]:
        """The adapters, as the checkpoint names them."""
        return [
            (name, tuple(array.shape), array.dtype.name)
            for name, array in self.adapters.arrays.items()
        ]

    def close(self) -> None:
        """Close the weights beneath."""
        self._base.close()

    def _check(self, name: str, values: np.ndarray) -> None:
        kept = self.adapters.base_weights
        if kept is None or name not in self._targets:
            return
        computed = values.astype(np.float32).astype(jnp.dtype(kept["dtype"]))
        if bit_sum(computed) != kept["sums"].get(name):
            refuse_base(name, self.origin)


def base_weights_of(run: RunConfig, checkpoint: Path, given: Path | None) -> Path:
    """Where the weights lie that a run's adapters were trained on.

    Args:
        given: a folder that the user names; None: the one that the run began with.

    Raises:
        UserError: they are not there.
    """
    path = given or run.training.initial_weights
    assert path is not None, "a run with adapters has initial weights"
    if not path.exists():
        raise UserError(
            f"{checkpoint}: holds adapters alone, and the weights that they were trained on are "
            f"not at {path}; say where they are now (tools/convert.py --base-weights FOLDER), and "
            "convert to have one model"
        )
    return path
