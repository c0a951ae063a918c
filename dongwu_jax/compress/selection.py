"""What of a model is kept: which blocks, and which channels and heads of them."""

from dataclasses import dataclass

import numpy as np

from dongwu_jax.compress.shapes import Shape, resized
from dongwu_jax.config import ModelConfig
from dongwu_jax.parallel.sharding import LogicalAxes

Indices = np.ndarray  # int64, ascending


@dataclass(frozen=True)
class BlockSelection:
    """What is kept of one block.

    Attributes:
        layer: its number in the model that is cut.
        mlp: channels of the feed-forward.
        kv_heads: key/value heads.
        heads: query heads, as many of each key/value head that is kept.
    """

    layer: int
    mlp: Indices
    kv_heads: Indices
    heads: Indices


@dataclass(frozen=True)
class Selection:
    """What is kept of a model.

    Attributes:
        hidden: channels of the residual stream, the same ones everywhere.
        blocks: in their order.
    """

    hidden: Indices
    blocks: tuple[BlockSelection, ...]

    def config(self, whole: ModelConfig) -> ModelConfig:
        """The architecture of what is kept; heads stay as wide as they were."""
        first = self.blocks[0]
        sizes = len(self.hidden), len(first.mlp), len(first.heads), len(first.kv_heads)
        return resized(whole, Shape(len(self.blocks), *sizes))

    def indices(self, axis: str, block: BlockSelection | None) -> Indices | None:
        """What is kept along a logical axis; None: all.

        Args:
            block: that the tensor belongs to, if it does.
        """
        if axis in ("embed", "norm"):
            return self.hidden
        if block is None:
            return None
        return {"mlp": block.mlp, "heads": block.heads, "kv_heads": block.kv_heads}.get(axis)

    def cut(
        self, values: np.ndarray, axes: LogicalAxes, block: BlockSelection | None
    ) -> np.ndarray:
        """What is kept of a tensor with these logical axes, in its dtype and order in memory."""
        # Slowest dimension first: taken across memory, it takes ten times as long.
        order = np.argsort(np.negative(values.strides), kind="stable")
        values = values.transpose(order)
        for place, dimension in enumerate(order):
            kept = self.indices(axes[dimension], block)
            if kept is not None and len(kept) < values.shape[place]:
                values = np.take(values, kept, axis=place)
        return values.transpose(np.argsort(order))


def everything(config: ModelConfig) -> Selection:
    """The selection that cuts nothing."""
    blocks = (
        BlockSelection(
            layer,
            np.arange(config.intermediate_size),
            np.arange(config.kv_heads),
            np.arange(config.num_heads),
        )
        for layer in range(config.num_layers)
    )
    return Selection(np.arange(config.hidden_size), tuple(blocks))
