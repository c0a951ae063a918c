"""What a training step changes: step count, master weights, optimizer state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dongwu_jax.config import ModelConfig, RunConfig
from dongwu_jax.models.parameters import Parameters
from dongwu_jax.parallel.sharding import LogicalSharding
from dongwu_jax.training.optimizer import make_optimizer
from dongwu_jax.training.trained_weights import (
    abstract_trained,
    initial_trained,
    trained_shardings,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The whole state of training, a tree of arrays."""

    step: jax.Array  # int32 scalar, optimizer steps done
    parameters: Parameters  # float32
    optimizer_state: Any


@dataclass(frozen=True)
class AdamMoments:
    """What Adam remembers."""

    count: int  # updates that the averages have seen, for the bias correction
    first: Parameters  # running averages of the gradients, float32
    second: Parameters  # of their squares


LoadParameters = Callable[[ModelConfig, Parameters], Parameters]
"""Gives float32 weights from the model config and the sharding of each."""

LoadMoments = Callable[[ModelConfig, Parameters], AdamMoments]


LoadFrozen = Callable[[ModelConfig, Parameters, str], Parameters]
"""Gives weights from the model config, the sharding of each, and the dtype of matrices."""


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins that has no checkpoint of its own."""

    load_parameters: LoadParameters | None = None  # None: fresh weights from `training.seed`
    step: int = 0  # steps that another trainer has done
    load_moments: LoadMoments | None = None  # None: zero
    load_base: LoadFrozen | None = None  # beneath adapters; needed by a resumed run, too


def abstract_state(config: RunConfig, sharding: LogicalSharding) -> Any:
    """A TrainState of shapes, dtypes and shardings, without allocating it."""
    shardings = trained_shardings(config, sharding)
    parameters = jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
        abstract_trained(config),
        shardings,
    )
    optimizer_state = jax.eval_shape(make_optimizer(config.optimizer).init, parameters)
    # Every optimizer leaf of a parameter's shape lies like the parameter; counters everywhere.
    optimizer_state = optax.tree.map_params(
        make_optimizer(config.optimizer),
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        optimizer_state,
        shardings,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding.replicated
        ),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated)
    return TrainState(step, parameters, optimizer_state)  # type: ignore[arg-type]


def initial_state(config: RunConfig, sharding: LogicalSharding, start: StartingPoint) -> TrainState:
    """The state of a starting point, made sharded: no device ever holds the whole."""
    abstract = abstract_state(config, sharding)
    target = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if start.load_parameters is None:
        parameters = initial_trained(config, target.parameters)
    else:
        parameters = start.load_parameters(config.model, target.parameters)
    if start.load_moments is None:
        optimizer_state = jax.jit(
            make_optimizer(config.optimizer).init, out_shardings=target.optimizer_state
        )(parameters)
    else:
        moments = start.load_moments(config.model, target.parameters)
        made = optax.tree.set(
            abstract.optimizer_state,
            count=jnp.asarray(moments.count, jnp.int32),
            mu=optax.tree.cast(moments.first, config.optimizer.first_moment_dtype),
            nu=moments.second,
        )
        optimizer_state = jax.device_put(made, target.optimizer_state)
    step = jax.device_put(jnp.asarray(start.step, jnp.int32), target.step)
    return TrainState(step, parameters, optimizer_state)
