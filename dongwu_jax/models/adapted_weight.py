"""A frozen matrix with a low-rank adapter beside it (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

from dataclasses import dataclass, field

import jax

from dongwu_jax.parallel.sharding import LogicalAxes
from dongwu_jax.parallel.weights import use_weight


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdaptedWeight:
    """Stands for `base + scale * down x up`, without ever forming it."""

    base: jax.Array  # [in..., out...]
    down: jax.Array  # [in..., rank]
    up: jax.Array  # [rank, out...]
    scale: float = field(metadata={"static": True})

    def in_use(self, axes: LogicalAxes) -> "AdaptedWeight":
        """All three as a computation needs them, wherever their parts lie.

        Args:
            axes: logical axes of the matrix.
        """
        down_axes, up_axes = adapter_axes(axes)
        return AdaptedWeight(
            use_weight(self.base, axes),
            use_weight(self.down, down_axes),
            use_weight(self.up, up_axes),
            self.scale,
        )


def adapter_axes(axes: LogicalAxes) -> tuple[LogicalAxes, LogicalAxes]:
    """Logical axes of `down` and `up` of a matrix with these axes.

    Adapters have an `embed` of their own, by default whole everywhere: they are small, and joining
    many small arrays for every use takes longer than keeping them.
    """
    own = tuple("adapter_embed" if axis == "embed" else axis for axis in axes)
    inputs = input_dims(axes)
    return (*own[:inputs], "adapter_rank"), ("adapter_rank", *own[inputs:])


def input_dims(axes: LogicalAxes) -> int:
    """How many of a matrix's dimensions are its input: that of attention's output has two."""
    return 2 if axes[0] == "heads" else 1
