"""What a step must pass to be applied: decided on the devices, so that none waits for the host."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from dongwu_jax.training.state import TrainState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gate:
    """The conditions of one step.

    Attributes:
        go: bool scalar; False holds the step whatever its numbers are. It is what the step before
            said of itself: the host learns of a bad step only when the next one has begun.
        limits: float32 [2], the largest loss and the largest gradient norm; infinity: any number.
    """

    go: jax.Array
    limits: jax.Array


def abstract_gate(sharding: NamedSharding) -> Any:
    """A gate of shapes and dtypes, to compile against; `sharding`: on every device."""
    go = jax.ShapeDtypeStruct((), jnp.bool_, sharding=sharding)
    return Gate(go, jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding))  # type: ignore[arg-type]


def open_gate() -> Gate:
    """A gate that only numbers that are none do not pass."""
    return Gate(jnp.asarray(True), jnp.full(2, np.inf, jnp.float32))


def passes(gate: Gate, loss: jax.Array, gradient_norm: jax.Array) -> jax.Array:
    """Whether the step is to be applied, a bool scalar."""
    numbers = jnp.stack([loss, gradient_norm])
    return gate.go & jnp.all(jnp.isfinite(numbers) & (numbers <= gate.limits))


def choose(applied: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """The new state, or the old one unchanged."""
    return jax.tree.map(lambda new, old: jnp.where(applied, new, old), new, old)
