"""Adam's state in a Megatron checkpoint, where it can be had independently of its layout."""

from typing import Protocol

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.megatron.sharded_model import ShardedModel
from dongwu_jax.interop.megatron.sharded_tensors import ShardedTensors

_STATE = "optimizer.state."
_MASTERS = ("fp32_param", "param")  # the second: with the distributed optimizer


class OptimizerMoments(Protocol):
    """Adam's state of every parameter, by our name, in our layout, float32."""

    def names(self) -> list[str]:
        """Our names of all tensors."""
        ...

    def exp_avg(self, name: str) -> np.ndarray:
        """The first moment."""
        ...

    def exp_avg_sq(self, name: str) -> np.ndarray:
        """The second moment."""
        ...

    def master(self, name: str) -> np.ndarray | None:
        """The float32 weights, more exact than the model's; None when those are the model's own."""
        ...


class ShardedMoments:
    """Adam's state in a torch distributed checkpoint, shaped like the model."""

    def __init__(self, shards: ShardedTensors, config: ModelConfig, rotary_interleaved: bool):
        """Find every tensor; no values are read.

        Raises:
            UserError: a tensor is missing or of the wrong shape.
        """

        def states(kind: str) -> ShardedModel:
            return ShardedModel(shards, config, rotary_interleaved, f"{_STATE}{kind}.")

        self._exp_avg, self._exp_avg_sq = states("exp_avg"), states("exp_avg_sq")
        masters = [kind for kind in _MASTERS if _has_state(shards, kind)]
        self._master = states(masters[0]) if masters else None

    def names(self) -> list[str]:
        """Our names of all tensors."""
        return self._exp_avg.names()

    def exp_avg(self, name: str) -> np.ndarray:
        """The first moment, float32.

        Raises:
            UserError: the values cannot be read.
        """
        return self._exp_avg.read(name).astype(np.float32, copy=False)

    def exp_avg_sq(self, name: str) -> np.ndarray:
        """The second moment, float32.

        Raises:
            UserError: the values cannot be read.
        """
        return self._exp_avg_sq.read(name).astype(np.float32, copy=False)

    def master(self, name: str) -> np.ndarray | None:
        """The float32 weights; None when the model's own are float32.

        Raises:
            UserError: the values cannot be read.
        """
        if self._master is None:
            return None
        return self._master.read(name).astype(np.float32, copy=False)


def sharded_moments(
    shards: ShardedTensors, config: ModelConfig, rotary_interleaved: bool
) -> ShardedMoments | str:
    """Adam's state of a torch distributed checkpoint, or the reason why it cannot be had."""
    if not _has_state(shards, "exp_avg"):
        if any("optimizer.distributed." in key for key in shards.tensors):
            return (
                "the optimizer state is in buckets of its data-parallel ranks (save with "
                "--dist-ckpt-optim-fully-reshardable to carry it)"
            )
        return "the checkpoint holds no optimizer state"
    try:
        return ShardedMoments(shards, config, rotary_interleaved)
    except UserError as error:
        return f"the optimizer state is not shaped like the model: {error}"


def _has_state(shards: ShardedTensors, kind: str) -> bool:
    return any(key.startswith(f"{_STATE}{kind}.") for key in shards.tensors)
