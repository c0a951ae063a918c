"""The adapters of a model (LoRA) as a tree of their own: structure, initial values, logical axes.

Each target such as `layers.0.mlp.up_proj` has `layers.0.mlp.up_proj.down`, which begins uniform
within 1 / sqrt(inputs), and `.up`, which begins as zeros: a run starts from the model as it is.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, zeros

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.lora import LoraConfig
from dongwu_jax.errors import UserError
from dongwu_jax.models.adapted_weight import AdaptedWeight, adapter_axes, input_dims
from dongwu_jax.models.parameters import (
    Parameters,
    abstract_parameters,
    initial_value,
    logical_axes,
    named_parameters,
    parameter_tree,
)
from dongwu_jax.parallel.sharding import LogicalAxes


@dataclass(frozen=True)
class _Declaration:
    shape: tuple[int, ...]
    axes: LogicalAxes
    initializer: Initializer


def abstract_adapters(model: ModelConfig, lora: LoraConfig) -> Parameters:
    """Shapes and dtypes (float32) of all adapters.

    Raises:
        UserError: `lora.rank` is above the smaller dimension of a target.
    """
    return parameter_tree(
        {
            name: jax.ShapeDtypeStruct(declared.shape, jnp.float32)
            for name, declared in _declarations(model, lora).items()
        }
    )


def initial_adapters(
    model: ModelConfig, lora: LoraConfig, seed: int, shardings: Parameters | None = None
) -> Parameters:
    """Fresh float32 adapters; values depend on the seed and each one's name alone, on any mesh.

    Args:
        shardings: where each shall lie; None: on the default device.
    """
    places = named_parameters(shardings) if shardings is not None else {}
    return parameter_tree(
        {
            name: initial_value(seed, name, declared.initializer, declared.shape, places.get(name))
            for name, declared in _declarations(model, lora).items()
        }
    )


def adapters_logical_axes(model: ModelConfig, lora: LoraConfig) -> dict[str, LogicalAxes]:
    """Each adapter's logical axes by dotted name."""
    return {name: declared.axes for name, declared in _declarations(model, lora).items()}


def target_names(model: ModelConfig, lora: LoraConfig) -> list[str]:
    """Dotted names of the matrices that have adapters."""
    names = logical_axes(model)
    return [name for name in names if name.rpartition(".")[2] in lora.targets]


def adapted_parameters(base: Parameters, adapters: Parameters, scale: float) -> Parameters:
    """The model's tree, its targets with their adapters."""
    named, low_rank = named_parameters(base), named_parameters(adapters)
    targets = [name.removesuffix(".down") for name in low_rank if name.endswith(".down")]
    adapted: dict[str, Any] = {
        name: AdaptedWeight(named[name], low_rank[f"{name}.down"], low_rank[f"{name}.up"], scale)
        for name in targets
    }
    return parameter_tree(named | adapted)


@functools.lru_cache(maxsize=8)
def _declarations(model: ModelConfig, lora: LoraConfig) -> dict[str, _Declaration]:
    assert lora.rank is not None, "adapters are asked for only where there are some"
    shapes = named_parameters(abstract_parameters(model))
    axes = logical_axes(model)
    declared = {}
    for name in target_names(model, lora):
        shape, inputs = shapes[name].shape, input_dims(axes[name])
        _check_rank(lora.rank, name, math.prod(shape[:inputs]), math.prod(shape[inputs:]))
        down_axes, up_axes = adapter_axes(axes[name])
        limit = 1 / math.sqrt(math.prod(shape[:inputs]))
        declared[f"{name}.down"] = _Declaration(
            (*shape[:inputs], lora.rank), down_axes, _uniform(limit)
        )
        declared[f"{name}.up"] = _Declaration((lora.rank, *shape[inputs:]), up_axes, zeros)
    return declared


def _check_rank(rank: int, name: str, inputs: int, outputs: int) -> None:
    if rank > min(inputs, outputs):
        raise UserError(
            f"lora.rank={rank} is above the largest rank of {name}, a matrix of {inputs} x "
            f"{outputs}; lower it to at most {min(inputs, outputs)}, or leave "
            f"{name.rpartition('.')[2]} out of lora.targets"
        )


@functools.lru_cache(maxsize=8)
def _uniform(limit: float) -> Initializer:
    """Uniform within +-limit; one object for all that share a compiled program."""

    def initializer(
        key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit, out_sharding=out_sharding)

    return initializer
