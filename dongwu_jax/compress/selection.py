"""What of a model is kept: which blocks, and which channels and heads of them."""

from dataclasses import dataclass

import numpy as np

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
        return whole.model_copy(
            update={
                "num_layers": len(self.blocks),
                "hidden_size": len(self.hidden),
                "intermediate_size": len(first.mlp),
                "num_heads": len(first.heads),
                "num_kv_heads": len(first.kv_heads),
                "head_dim": whole.width_per_head,
            }
        )

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
        """What is kept of a tensor with these logical axes, in its dtype."""
        for dimension, axis in enumerate(axes):
            kept = self.indices(axis, block)
            if kept is not None and len(kept) < values.shape[dimension]:
                values = np.take(values, kept, axis=dimension)
        return values


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
