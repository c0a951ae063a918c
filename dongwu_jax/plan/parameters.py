"""How many parameters a run has, and how many of them a device holds."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from dongwu_jax.config import ModelConfig
from dongwu_jax.models.parameters import abstract_parameters, logical_axes, named_parameters
from dongwu_jax.parallel.sharding import LogicalAxes, Rules

_BLOCK = "layers."


@dataclass(frozen=True)
class ParameterTable:
    """Numbers of parameters by their logical axes."""

    blocks: Mapping[LogicalAxes, int]  # of all blocks together
    outside: Mapping[LogicalAxes, int]  # embedding, final norm, head

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.blocks.values()) + sum(self.outside.values())

    def stored(self, rules: Rules, mesh_shape: Mapping[str, int]) -> float:
        """Parameters of which one device stores masters and optimizer state."""
        whole = list(self.blocks.items()) + list(self.outside.items())
        return sum(count / _shards(axes, rules, mesh_shape) for axes, count in whole)

    def held(self, rules: Rules, mesh_shape: Mapping[str, int]) -> float:
        """Parameters of which one device holds compute weights and gradients during a step.

        What `data` splits is joined then, and what `pipe` splits is exchanged for whole layers;
        a stage needs what is outside of the blocks whole.
        """
        joined = {**mesh_shape, "data": 1, "pipe": 1}
        blocks = sum(count / _shards(axes, rules, joined) for axes, count in self.blocks.items())
        outside = sum(count / _shards(axes, rules, joined) for axes, count in self.outside.items())
        return blocks / mesh_shape["pipe"] + outside

    def used(self, rules: Rules, mesh_shape: Mapping[str, int]) -> tuple[float, float]:
        """Parameters that one device computes with, joined but for `tensor`: blocks, outside."""
        joined = {**dict.fromkeys(mesh_shape, 1), "tensor": mesh_shape["tensor"]}
        blocks = sum(count / _shards(axes, rules, joined) for axes, count in self.blocks.items())
        outside = sum(count / _shards(axes, rules, joined) for axes, count in self.outside.items())
        return blocks / mesh_shape["pipe"], outside


@functools.lru_cache(maxsize=4)
def parameter_table(model: ModelConfig) -> ParameterTable:
    """Count a model's parameters without making any."""
    axes = logical_axes(model)
    blocks: dict[LogicalAxes, int] = {}
    outside: dict[LogicalAxes, int] = {}
    for name, shape in named_parameters(abstract_parameters(model)).items():
        counts = blocks if name.startswith(_BLOCK) else outside
        counts[axes[name]] = counts.get(axes[name], 0) + math.prod(shape.shape)
    return ParameterTable(blocks, outside)


def _shards(axes: LogicalAxes, rules: Rules, mesh_shape: Mapping[str, int]) -> int:
    return math.prod(mesh_shape[mesh_axis] for axis in axes for mesh_axis in rules[axis])
