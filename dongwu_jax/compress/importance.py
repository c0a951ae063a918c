"""What calibration text says of each part of a model: forward passes alone (Minitron, 2024).

- a channel of the feed-forward: the size of what down_proj takes from it;
- a query head: the size of what o_proj takes from it;
- a hidden channel: the size of every norm's output in it;
- a block: how much it turns the residual stream (ShortGPT, 2024), 1 - cos(input, output).

Sizes are mean absolute values over a sequence, squared and added over sequences.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.on_devices import OnDevices
from dongwu_jax.interop.loaded_model import LoadedModel
from dongwu_jax.models.llama import Llama, block_in_use
from dongwu_jax.models.projection import project
from dongwu_jax.models.rope import rotary_tables
from dongwu_jax.parallel.context import Attend

_O_PROJ, _GATE_PROJ, _DOWN_PROJ, _PRODUCTS = 3, 4, 6, 7  # products of a block, in their order


@dataclass(frozen=True)
class Importance:
    """Scores of a model's parts; more is more important. float64.

    Attributes:
        blocks: [layers].
        hidden: [hidden].
        mlp: [layers, intermediate].
        heads: [layers, heads].
        stream: [2 layers + 1, hidden]; mean square of each channel before each norm (a block's two,
            ..., the final one), in units of the mean square of all channels.
    """

    blocks: np.ndarray
    hidden: np.ndarray
    mlp: np.ndarray
    heads: np.ndarray
    stream: np.ndarray

    def __post_init__(self) -> None:
        for name, scores in vars(self).items():
            wrong = np.argwhere(~np.isfinite(scores))
            if len(wrong):
                place = ", ".join(map(str, wrong[0]))
                raise UserError(
                    f"the importance of {name} [{place}] is {scores[tuple(wrong[0])]}: the model "
                    "has weights that are not finite, or overflows on this text; nothing was cut"
                )


def measure_importance(
    model: LoadedModel,
    batches: Iterable[np.ndarray],
    progress: Callable[[int], None] = lambda tokens: None,
) -> Importance:
    """Run calibration text through the model.

    Args:
        batches: int32 [batch, length] each, whole sequences; batch a multiple of the devices.
        progress: called with the number of tokens done since the last call.
    """
    program = OnDevices(model, _of_sequences)
    totals: dict[str, np.ndarray] = {}
    sequences = 0
    for tokens in batches:
        found = program(tokens, np.zeros(len(tokens), np.int32))
        for name, values in found.items():
            totals[name] = totals.get(name, 0.0) + values.astype(np.float64).sum(axis=0)
        sequences += len(tokens)
        progress(tokens.size)
    return Importance(
        totals["blocks"] / sequences,
        np.sqrt(totals["hidden"]).sum(axis=0),
        np.sqrt(totals["mlp"]),
        np.sqrt(totals["heads"].sum(axis=-1)),
        totals["stream"] / sequences,
    )


def _of_sequences(
    model: Llama, tokens: jax.Array, _: jax.Array, attend: Attend
) -> dict[str, jax.Array]:
    """Statistics of each sequence, [batch, ...]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    rotary = rotary_tables(positions, model.config)
    graph = nnx.graphdef(model.layers[0])
    x = model.embed(tokens)
    blocks, hidden, mlp, heads, stream = [], [], [], [], []
    for block in model.layers:
        inputs: list[jax.Array] = []

        def multiply(x: jax.Array, weight: Any, seen: list[jax.Array] = inputs) -> jax.Array:
            seen.append(x)
            return project(x, weight)

        # As the block itself, for what lies between its halves.
        in_use = block_in_use(graph, nnx.state(block))
        normalised = in_use.normalise(x, in_use.attention_norm)
        middle = x + in_use.attention(normalised, rotary, attend, multiply)
        after = middle + in_use.mlp(in_use.normalise(middle, in_use.mlp_norm), multiply)
        assert len(inputs) == _PRODUCTS
        blocks.append(_turn(x, after))
        heads.append(_size(inputs[_O_PROJ]))
        mlp.append(_size(inputs[_DOWN_PROJ]))
        hidden += [_size(inputs[0]), _size(inputs[_GATE_PROJ])]
        stream += [_mean_square(x), _mean_square(middle)]
        x = after
    hidden.append(_size(model.normalise(x)))
    stream.append(_mean_square(x))
    found = {"blocks": blocks, "hidden": hidden, "mlp": mlp, "heads": heads, "stream": stream}
    return {name: jnp.stack(values, axis=1) for name, values in found.items()}


def _size(x: jax.Array) -> jax.Array:
    """[batch, length, ...] -> [batch, ...]; the squared mean absolute value."""
    return jnp.square(jnp.mean(jnp.abs(x.astype(jnp.float32)), axis=1))


def _turn(before: jax.Array, after: jax.Array) -> jax.Array:
    """[batch, length, embed] twice -> [batch]; the mean of 1 - cos."""
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)
    product = jnp.sum(before * after, axis=-1)
    norms = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
    return jnp.mean(1 - product / norms, axis=-1)


def _mean_square(x: jax.Array) -> jax.Array:
    """[batch, length, embed] -> [batch, embed]; in units of that of all channels of a position."""
    squares = jnp.square(x.astype(jnp.float32))
    return jnp.mean(squares / jnp.mean(squares, axis=-1, keepdims=True), axis=1)
