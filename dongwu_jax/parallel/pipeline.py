"""Circular pipeline parallelism inside a program that is manual over `pipe`.

Each of P stages holds v pieces of the layers (virtual stages): piece k lies on stage k modulo P, so
a micro batch goes round v times. Micro batches go in groups of P; at every tick each stage works on
one of them and passes its output to the next stage. v * M + P - 1 ticks for M micro batches, of
which P - 1 find a stage idle (Narayanan et al. 2021, "Efficient large-scale language model training
on GPU clusters", section 2.2).

The backward pass is written out: the same ticks in reverse, with what each forward tick kept. So
weights' gradients add up in float32, and nothing is kept that the remat policy does not name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dongwu_jax.parallel.collectives import send_around
from dongwu_jax.parallel.sharding import record

# (weights of one layer each, activations) -> activations, [batch, length, embed]
Stage = Callable[[list[Any], jax.Array], jax.Array]

_STREAM = ("batch", "residual_length", "hidden")
_STREAMS = ("micro_batches", *_STREAM)


@dataclass(frozen=True)
class Schedule:
    """Who works on what at which tick."""

    stages: int
    virtual_stages: int
    micro_batches: int  # a multiple of `stages`

    @property
    def ticks(self) -> int:
        """Ticks of one pass over all micro batches."""
        return self.virtual_stages * self.micro_batches + self.stages - 1

    @property
    def bubble(self) -> float:
        """The share of its ticks that a stage is idle."""
        return (self.stages - 1) / self.ticks

    def work(self, tick: jax.Array, stage: jax.Array) -> "Work":
        """What a stage does at a tick; anything where it is idle."""
        item = tick - stage
        idle = (item < 0) | (item >= self.virtual_stages * self.micro_batches)
        item = jnp.clip(item, 0, self.virtual_stages * self.micro_batches - 1)
        turn = item // self.stages % self.virtual_stages
        group = item // (self.stages * self.virtual_stages)
        return Work(
            idle=idle,
            turn=turn,
            micro_batch=group * self.stages + item % self.stages,
            enters=(stage == 0) & (turn == 0),
            leaves=(stage == self.stages - 1) & (turn == self.virtual_stages - 1),
        )


@dataclass(frozen=True)
class Work:
    """One stage at one tick."""

    idle: jax.Array
    turn: jax.Array  # which of its pieces the stage applies
    micro_batch: jax.Array
    enters: jax.Array  # whether the micro batch comes from outside
    leaves: jax.Array  # whether it is through


@dataclass(frozen=True)
class Kept:
    """What the forward pass kept for the backward pass."""

    arrays: list[jax.Array]  # each [ticks, ...]
    rebuild: Callable[[list[Any], list[jax.Array]], Callable]  # weights, arrays of a tick -> VJP


def run_forward(stage: Stage, weights: Any, inputs: jax.Array, schedule: Schedule) -> jax.Array:
    """Send micro batches through all stages.

    Args:
        weights: tree of [virtual stages, layers of a piece, ...], this stage's.
        inputs: [micro batches, batch, length, embed], looked at on the first stage.

    Returns:
        Outputs of the same shape; zero on all but the last stage.
    """

    def tick(carry: tuple[jax.Array, jax.Array], now: jax.Array) -> tuple[Any, None]:
        arriving, outputs = carry
        work = schedule.work(now, jax.lax.axis_index("pipe"))
        entering = _select(inputs, work.micro_batch)
        output = stage(_layers(weights, work.turn), jnp.where(work.enters, entering, arriving))
        outputs = _store(outputs, output, work)
        return (send_around(output, "pipe", 1, _STREAM), outputs), None

    record("inputs of the stages", inputs, _STREAMS)
    start = jnp.zeros_like(inputs[0]), jnp.zeros_like(inputs)
    (_, outputs), _ = jax.lax.scan(tick, start, jnp.arange(schedule.ticks))
    record("outputs of the stages", outputs, _STREAMS)
    return outputs


def run_forward_keeping(
    stage: Stage, weights: Any, constants: Any, inputs: jax.Array, schedule: Schedule
) -> tuple[jax.Array, Kept]:
    """As `run_forward`, and keep what `run_backward` needs.

    Args:
        constants: arrays that `stage` closes over, which need not be kept for every tick.
    """
    rebuild: list[Any] = []
    fixed = jax.tree.leaves(constants)

    def tick(carry: tuple[jax.Array, jax.Array], now: jax.Array) -> tuple[Any, list[jax.Array]]:
        arriving, outputs = carry
        work = schedule.work(now, jax.lax.axis_index("pipe"))
        entering = _select(inputs, work.micro_batch)
        layers = _layers(weights, work.turn)
        output, vjp = jax.vjp(stage, layers, jnp.where(work.enters, entering, arriving))
        arrays, rebuild_vjp = _split_residuals(vjp, layers, fixed)
        rebuild[:] = [rebuild_vjp]
        outputs = _store(outputs, output, work)
        return (send_around(output, "pipe", 1, _STREAM), outputs), arrays

    start = jnp.zeros_like(inputs[0]), jnp.zeros_like(inputs)
    (_, outputs), arrays = jax.lax.scan(tick, start, jnp.arange(schedule.ticks))
    return outputs, Kept(arrays, rebuild[0])


def run_backward(
    weights: Any, kept: Kept, gradients: jax.Array, schedule: Schedule
) -> tuple[Any, jax.Array]:
    """Send the outputs' gradients back through all stages.

    Args:
        gradients: [micro batches, batch, length, embed], looked at on the last stage.

    Returns:
        The weights' gradients, float32, and the inputs', zero on all but the first stage.
    """

    def tick(carry: tuple[Any, jax.Array, jax.Array], xs: tuple[jax.Array, list[jax.Array]]) -> Any:
        total, arriving, input_gradients = carry
        now, arrays = xs
        work = schedule.work(now, jax.lax.axis_index("pipe"))
        entering = _select(gradients, work.micro_batch)
        gradient = jnp.where(work.leaves, entering, arriving)
        vjp = kept.rebuild(_layers(weights, work.turn), arrays)
        layers, before = vjp(jnp.where(work.idle, 0, gradient))
        total = _add(total, layers, work.turn)
        first = Work(work.idle, work.turn, work.micro_batch, work.enters, leaves=work.enters)
        input_gradients = _store(input_gradients, before, first)
        return (total, send_around(before, "pipe", -1, _STREAM), input_gradients), None

    start = (
        jax.tree.map(lambda weight: jnp.zeros(weight.shape, jnp.float32), weights),
        jnp.zeros_like(gradients[0]),
        jnp.zeros_like(gradients),
    )
    ticks = jnp.arange(schedule.ticks)
    (total, _, input_gradients), _ = jax.lax.scan(tick, start, (ticks, kept.arrays), reverse=True)
    return total, input_gradients


def _select(stack: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)


def _store(stack: jax.Array, value: jax.Array, work: Work) -> jax.Array:
    """`stack` with `value` at the micro batch's place, if it is one that leaves here now."""
    there = work.leaves & ~work.idle
    value = jnp.where(there, value, _select(stack, work.micro_batch))
    return jax.lax.dynamic_update_index_in_dim(stack, value, work.micro_batch, 0)


def _layers(weights: Any, turn: jax.Array) -> list[Any]:
    """The weights of each layer of one piece."""
    virtual_stages, count = jax.tree.leaves(weights)[0].shape[:2]
    piece = jax.tree.map(
        lambda stack: stack[0] if virtual_stages == 1 else _select(stack, turn), weights
    )
    return [jax.tree.map(lambda stack, i=i: stack[i], piece) for i in range(count)]


def _add(total: Any, layers: list[Any], turn: jax.Array) -> Any:
    """Add the gradients of one piece's layers to their place in float32 totals."""
    piece = jax.tree.map(lambda *leaves: jnp.stack(leaves).astype(jnp.float32), *layers)

    def add(total: jax.Array, gradient: jax.Array) -> jax.Array:
        if total.shape[0] == 1:
            return total + gradient[None]
        summed = _select(total, turn) + gradient
        return jax.lax.dynamic_update_index_in_dim(total, summed, turn, 0)

    return jax.tree.map(add, total, piece)


def _split_residuals(
    vjp: Callable, layers: list[Any], fixed: list[jax.Array]
) -> tuple[list[jax.Array], Callable]:
    """The arrays of a VJP that differ from tick to tick, and how to build it again from them.

    Its leaves are arrays; those that are weights or constants are there in the backward pass too.
    """
    leaves, structure = jax.tree.flatten(vjp)
    weight_places = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves(layers))}
    fixed_places = {id(leaf): place for place, leaf in enumerate(fixed)}
    kept: list[jax.Array] = []
    kept_places: dict[int, int] = {}
    sources: list[tuple[str, int]] = []
    for leaf in leaves:
        if id(leaf) in weight_places:
            sources.append(("weight", weight_places[id(leaf)]))
        elif id(leaf) in fixed_places:
            sources.append(("fixed", fixed_places[id(leaf)]))
        else:
            if id(leaf) not in kept_places:
                kept_places[id(leaf)] = len(kept)
                kept.append(leaf)
            sources.append(("kept", kept_places[id(leaf)]))

    def rebuild(layers: list[Any], arrays: list[jax.Array]) -> Callable:
        pools = {"weight": jax.tree.leaves(layers), "fixed": fixed, "kept": arrays}
        return jax.tree.unflatten(structure, [pools[pool][place] for pool, place in sources])

    return kept, rebuild
