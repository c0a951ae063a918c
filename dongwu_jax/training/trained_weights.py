"""Which weights a run trains: all of the model's, or adapters beside frozen ones."""

from dataclasses import dataclass, field

import jax

from dongwu_jax.config import RunConfig
from dongwu_jax.models.lora import abstract_adapters, adapters_logical_axes, initial_adapters
from dongwu_jax.models.parameters import (
    Parameters,
    abstract_parameters,
    cast_matrices,
    initial_parameters,
    logical_axes,
    parameter_shardings,
    tree_shardings,
)
from dongwu_jax.parallel.sharding import LogicalAxes, LogicalSharding


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frozen:
    """Weights that a step reads and nothing changes, in the dtype of computation."""

    base: Parameters = field(default_factory=dict)  # of the model whose adapters are trained
    teacher: Parameters = field(default_factory=dict)


def abstract_frozen(config: RunConfig, sharding: LogicalSharding) -> Frozen:
    """Shapes, dtypes and shardings of the weights beneath adapters, without a teacher's."""
    if not config.lora.rank:
        return Frozen()
    model, dtype = config.model, config.precision.compute_dtype
    shapes = jax.eval_shape(lambda x: cast_matrices(x, dtype), abstract_parameters(model))
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        parameter_shardings(model, sharding),
    )
    return Frozen(placed)


def trained_axes(config: RunConfig) -> dict[str, LogicalAxes]:
    """Logical axes of what is trained, by dotted name."""
    if config.lora.rank:
        return adapters_logical_axes(config.model, config.lora)
    return logical_axes(config.model)


def abstract_trained(config: RunConfig) -> Parameters:
    """Shapes and dtypes (float32) of what is trained."""
    if config.lora.rank:
        return abstract_adapters(config.model, config.lora)
    return abstract_parameters(config.model)


def trained_shardings(config: RunConfig, sharding: LogicalSharding) -> Parameters:
    """The tree of what is trained with each array's NamedSharding.

    Raises:
        UserError: a rule does not divide a dimension, or uses one mesh axis twice.
    """
    return tree_shardings(trained_axes(config), abstract_trained(config), sharding)


def initial_trained(config: RunConfig, shardings: Parameters) -> Parameters:
    """Fresh float32 weights from `training.seed`."""
    seed = config.training.seed
    if config.lora.rank:
        return initial_adapters(config.model, config.lora, seed, shardings)
    return initial_parameters(config.model, seed, shardings)
