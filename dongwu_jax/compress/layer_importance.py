"""What each layer is worth to the loss: how much it rises when that layer alone is left out."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.on_devices import OnDevices
from dongwu_jax.interop.loaded_model import LoadedModel
from dongwu_jax.models.cross_entropy import next_token_losses
from dongwu_jax.models.llama import Llama, block_in_use
from dongwu_jax.models.rope import rotary_tables
from dongwu_jax.parallel.context import Attend

_NONE = -1  # the layer that is left out of the whole model


def loss_rises(
    model: LoadedModel,
    batches: Sequence[np.ndarray],
    progress: Callable[[int], None] = lambda tokens: None,
) -> np.ndarray:
    """Rise of the mean loss of a token, in nats, without each layer; one program for all.

    Args:
        batches: int32 [batch, length] each, whole sequences; batch a multiple of the devices.
        progress: called with the number of tokens done since the last call, of
            (layers + 1) x all tokens.

    Returns:
        float64 [layers]; negative for a layer without which the model is better.

    Raises:
        UserError: sequences of one token.
    """
    if batches[0].shape[1] == 1:
        raise UserError("--length 1: there is nothing to predict; give sequences of 2 or more")
    program = OnDevices(model, _mean_losses)
    without = np.zeros(model.config.num_layers + 1)  # the last: without none
    for tokens in batches:
        for layer in (*range(model.config.num_layers), _NONE):
            losses = program(tokens, np.full(len(tokens), layer, np.int32))
            without[layer] += losses.astype(np.float64).sum()
            progress(tokens.size)
    return (without[:-1] - without[-1]) / sum(len(tokens) for tokens in batches)


def _mean_losses(model: Llama, tokens: jax.Array, left_out: jax.Array, attend: Attend) -> jax.Array:
    """float32 [batch]; of each sequence's tokens but the first, a layer bypassed.

    Args:
        left_out: int32 [batch]; that layer of each sequence.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    rotary = rotary_tables(positions, model.config)
    graph = nnx.graphdef(model.layers[0])
    x = model.embed(tokens)
    for layer, block in enumerate(model.layers):
        after = block_in_use(graph, nnx.state(block))(x, rotary, attend)
        x = jnp.where((left_out == layer)[:, None, None], x, after)
    # Not rounded to bfloat16: what the least important layers change is small.
    hidden = model.normalise(x)[:, :-1].astype(jnp.float32)

    def of_sequence(sequence: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden, labels = sequence
        return jnp.mean(next_token_losses(model, hidden[None], labels[None]))

    return jax.lax.map(of_sequence, (hidden, tokens[:, 1:]))  # for fewer logits at once
