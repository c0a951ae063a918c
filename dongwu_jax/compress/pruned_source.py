"""A model with parts left out, read one tensor at a time like any other: to convert it is to prune.

What uses it never sees the whole model; memory is that of one tensor.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dongwu_jax.compress.selection import Selection
from dongwu_jax.interop.model_source import ModelSource, StoredName
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.models.parameters import logical_axes

_IN_BLOCK = re.compile(r"layers\.(\d+)\.(.+)")


class PrunedSource:
    """What a selection keeps of a source.

    Args:
        norm_scales: by our names in the whole model, factors of the gains of norms, which see
            fewer channels than they did.
    """

    def __init__(
        self, whole: ModelSource, selection: Selection, norm_scales: Mapping[str, float]
    ) -> None:
        self._whole = whole
        self._selection = selection
        self._norm_scales = norm_scales
        self._axes = logical_axes(whole.config)
        self.format = whole.format
        self.config = selection.config(whole.config)
        self.notes = whole.notes
        self.iteration: int | None = None  # it is no step of any run
        self.consumed_samples: int | None = None

    @property
    def description(self) -> str:
        """What was found, and what is kept."""
        config = self.config
        return (
            f"{self._whole.description}, pruned to {config.num_layers} layers, hidden_size "
            f"{config.hidden_size}, intermediate_size {config.intermediate_size}, "
            f"{config.num_heads} heads, {config.kv_heads} key/value heads"
        )

    @property
    def dtype(self) -> str:
        """That of the whole model."""
        return self._whole.dtype

    @property
    def tokenizer(self) -> Path | None:
        """That of the whole model."""
        return self._whole.tokenizer

    def names(self) -> list[str]:
        """Our dotted names of all tensors."""
        return [tensor.name for tensor in model_tensors(self.config)]

    def read(self, name: str) -> np.ndarray:
        """One tensor, cut, in the dtype in which the whole one is stored."""
        origin, block = name, None
        if found := _IN_BLOCK.fullmatch(name):
            block = self._selection.blocks[int(found[1])]
            origin = f"layers.{block.layer}.{found[2]}"
        values = self._selection.cut(self._whole.read(origin), self._axes[origin], block)
        scale = self._norm_scales.get(origin)
        if scale is None:
            return values
        return (values.astype(np.float32) * np.float32(scale)).astype(values.dtype)

    def stored(self) -> list[StoredName]:
        """The tensors that are kept, by our names."""
        return [(t.name, t.shape, self.dtype) for t in model_tensors(self.config)]

    def close(self) -> None:
        """Release files."""
        self._whole.close()
