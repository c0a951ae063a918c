"""Running the blocks over new tokens with a key/value cache."""

import jax
import jax.numpy as jnp

from dongwu_jax.models.attention import cached_attention
from dongwu_jax.models.llama import Llama
from dongwu_jax.models.rope import rotary_tables

# Keys and values of each block, [batch, capacity, kv_heads, head_dim]; slot p holds position p.
Cache = list[tuple[jax.Array, jax.Array]]


def empty_cache(model: Llama, batch: int, capacity: int) -> Cache:
    """A cache for `capacity` positions, in the dtype of the model's matrices."""
    config, dtype = model.config, model.embed_tokens[...].dtype
    empty = jnp.zeros((batch, capacity, config.kv_heads, config.width_per_head), dtype)
    return [(empty, empty) for _ in range(config.num_layers)]


def cached_hidden_states(
    model: Llama, tokens: jax.Array, positions: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """The normalised output of the last block for new tokens.

    Args:
        tokens, positions: int32 [batch, new]; a token sees the slots up to its own position.

    Returns:
        [batch, new, embed], and the cache with the new tokens in it.
    """
    x = model.embed(tokens)
    rotary = rotary_tables(positions, model.config)
    rows = jnp.arange(tokens.shape[0])[:, None]
    updated: Cache = []

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        keys, values = cache[len(updated)]
        keys, values = keys.at[rows, positions].set(key), values.at[rows, positions].set(value)
        updated.append((keys, values))
        return cached_attention(query, keys, values, positions)

    for block in model.layers:
        x = block(x, rotary, attend)
    return model.normalise(x), updated
