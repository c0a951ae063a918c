"""What every reader of a format offers."""

from pathlib import Path
from typing import Protocol

import numpy as np

from dongwu_jax.config import ModelConfig

MEGATRON_FORMATS = ("megatron", "torch_dist")

StoredName = tuple[str, tuple[int, ...], str]
"""A tensor as a file stores it: its name (nested keys joined by /), shape and dtype."""


class ModelSource(Protocol):
    """A model that can be read one tensor at a time."""

    format: str  # "hf", "meta", "megatron", "torch_dist", "gguf" or "dongwu"
    config: ModelConfig
    notes: list[str]  # what was assumed because the files do not say
    iteration: int | None  # training steps done, where known
    consumed_samples: int | None  # training samples seen, where known

    @property
    def description(self) -> str:
        """What was found, for people."""
        ...

    @property
    def dtype(self) -> str:
        """Format of the stored weights, e.g. "bfloat16"."""
        ...

    @property
    def tokenizer(self) -> Path | None:
        """Folder of its tokenizer, readable until `close`; None when it has none."""
        ...

    def names(self) -> list[str]:
        """Our dotted names of all tensors."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor, in our layout, in the dtype in which it is stored."""
        ...

    def stored(self) -> list[StoredName]:
        """The tensors as the files name and shape them."""
        ...

    def close(self) -> None:
        """Release files."""
        ...
