"""Rotary position embeddings, rotating halves as Hugging Face and Megatron do by default."""

import jax
import jax.numpy as jnp
import numpy as np

from dongwu_jax.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """Angle per position of each rotated pair, float32 [head_dim / 2].

    base^(-2i/head_dim) of RoFormer (Su et al. 2021); `linear` scaling divides positions by a factor
    (Position Interpolation, Chen et al. 2023), which is the same as dividing the frequencies.
    """
    head_dim = config.width_per_head
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.float32(config.rope_theta) ** exponents
    if config.rope_scaling is not None:
        frequencies = frequencies / np.float32(config.rope_scaling.factor)
    return frequencies.astype(np.float32)


def rotary_tables(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotation angles.

    Args:
        positions: int32 [batch, length].

    Returns:
        Two float32 arrays [batch, length, 1, head_dim / 2], to broadcast over heads.
    """
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)
    return jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]


def apply_rotary(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate pairs (i, i + head_dim/2) of `x` [batch, length, heads, head_dim], in float32."""
    cosine, sine = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
