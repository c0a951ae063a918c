"""Writing a checkpoint of ours that holds weights alone, to train from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.data.tokenizers import tokenizer_files
from dongwu_jax.interop.targets import DTYPES, PlannedFile, Progress, ReadTensor, cast
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.training.checkpoints.stored_weights import save_weights


@dataclass(frozen=True)
class CheckpointTarget:
    """Step 0 of a new checkpoint folder."""

    config: ModelConfig
    dtype: str  # of the stored weights, a key of `DTYPES`; training reads any of them as float32
    tokenizer: Path | None = None

    def files(self) -> list[PlannedFile]:
        """The folder of the weights; how many files it has is up to the storage."""
        tensors = [(tensor.name, tensor.shape) for tensor in model_tensors(self.config)]
        return [PlannedFile("0/parameters", tensors)]

    def write(self, folder: Path, read: ReadTensor, progress: Progress) -> None:
        """Write the checkpoint into an existing empty folder.

        Raises:
            UserError: a value does not fit the dtype, or the folder cannot be written.
        """

        def stored(name: str) -> np.ndarray:
            return cast(read(name), self.dtype, name)

        files = tokenizer_files(self.tokenizer) if self.tokenizer else []
        save_weights(folder, self.config, DTYPES[self.dtype], stored, files, progress)
