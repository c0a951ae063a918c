"""Reading a checkpoint of ours as a model to convert, evaluate or start from."""

from pathlib import Path

import numpy as np

from dongwu_jax.interop.model_source import StoredName
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.models.rope_frequencies import with_new_base
from dongwu_jax.training.checkpoints.folders import newest_step, tokenizer_folder
from dongwu_jax.training.checkpoints.stored_weights import WeightReader


class CheckpointSource:
    """A checkpoint of ours: the newest step of a run, or one step."""

    format = "dongwu"

    def __init__(self, path: Path, weights: WeightReader):
        self._weights = weights
        trained_alone = self._weights.run.model.model_copy(update={"teacher_hidden_size": None})
        self.config = with_new_base(trained_alone)  # no other format has NTK scaling
        self.dtype = self._weights.dtype
        self.tokenizer = tokenizer_folder(path)
        self.iteration = self._weights.iteration or None  # 0: weights without a history
        self.consumed_samples = self._weights.consumed_samples
        self.notes: list[str] = []
        trained = f", iteration {self.iteration}" if self.iteration else ""
        self.description = f"dongwu checkpoint, step folder {newest_step(path).name}{trained}"

    def names(self) -> list[str]:
        """Our dotted names of all tensors."""
        return [tensor.name for tensor in model_tensors(self.config)]

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype in which it is stored."""
        return self._weights[name]

    def stored(self) -> list[StoredName]:
        """The tensors as the checkpoint names them, which is as we do."""
        return [(t.name, t.shape, self.dtype) for t in model_tensors(self.config)]

    def close(self) -> None:
        """Nothing stays open between reads."""
