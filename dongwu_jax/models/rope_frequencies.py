"""Frequencies of rotary positions, computed from the architecture alone."""

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
