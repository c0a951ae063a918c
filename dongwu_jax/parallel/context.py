"""Context parallelism by exchange: attention over sequences of which each device holds a part.

Everything but attention works on positions one by one, so a device needs only its part of each
sequence. For attention, Ulysses (Jacobs et al. 2023) gives each device all positions of some heads;
ring attention (`models/ring_attention.py`) passes keys and values round instead.
"""

from collections.abc import Callable

import jax

from dongwu_jax.parallel.collectives import all_to_all

# Causal attention of (query, key, value); `segments`, int32 [batch, length], keeps samples apart.
Attend = Callable[..., jax.Array]

_HEADS = ("batch", "attention_length", "attention_heads", "head_dim")
_KV_HEADS = ("batch", "attention_length", "attention_kv_heads", "head_dim")
_LENGTH, _HEAD = 1, 2  # dimensions of [batch, length, heads, head_dim]


def ulysses(attend: Attend) -> Attend:
    """Attention over the whole sequence, for parts of it: exchange heads for positions and back."""

    def exchanged(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        query = all_to_all(query, ("context",), _HEAD, _LENGTH, _HEADS)
        key = all_to_all(key, ("context",), _HEAD, _LENGTH, _KV_HEADS)
        value = all_to_all(value, ("context",), _HEAD, _LENGTH, _KV_HEADS)
        return all_to_all(attend(query, key, value), ("context",), _LENGTH, _HEAD, _HEADS)

    return exchanged
