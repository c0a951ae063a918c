"""Rotary position embeddings, rotating halves as Hugging Face and Megatron do by default."""

import jax
import jax.numpy as jnp

from dongwu_jax.config import ModelConfig
from dongwu_jax.models.rope_frequencies import attention_factor, inverse_frequencies
from dongwu_jax.parallel.sharding import constrain


def rotary_tables(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotation angles, times the attention factor of the scaling.

    Args:
        positions: int32 [batch, length].

    Returns:
        Two float32 arrays [batch, length, 1, head_dim / 2], to broadcast over heads.
    """
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)
    factor = attention_factor(config)
    cosine, sine = (
        constrain(factor * table[:, :, None, :], "batch", "length", "each_head", "each_pair")
        for table in (jnp.cos(angles), jnp.sin(angles))
    )
    return cosine, sine


def apply_rotary(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate pairs (i, i + head_dim/2) of `x` [batch, length, heads, head_dim], in float32."""
    cosine, sine = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
