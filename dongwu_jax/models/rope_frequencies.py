"""Frequencies of rotary positions, computed from the architecture alone.

RoFormer (Su et al. 2021); Position Interpolation (Chen et al. 2023); the NTK-aware base; YaRN (Peng
et al. 2023); Llama 3's bands. Each equals transformers' implementation to float32's rounding.
"""

import math

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.rope_scaling import RopeScaling


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """Angle per position of each rotated pair, float32 [head_dim / 2]."""
    config = with_new_base(config)
    scaling, head_dim = config.rope_scaling, config.width_per_head
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = np.float32(1.0) / np.float32(config.rope_theta) ** exponents
    if scaling is None:
        return plain.astype(np.float32)
    divided = plain / np.float32(scaling.factor)
    if scaling.type == "linear":
        return divided.astype(np.float32)
    yarn = scaling.type == "yarn"
    share = _kept_by_yarn(config, scaling) if yarn else _kept_by_llama3(config, scaling, plain)
    return ((1 - share) * divided + share * plain).astype(np.float32)


def attention_factor(config: ModelConfig) -> float:
    """What YaRN multiplies rotated queries and keys by; 1 elsewhere."""
    scaling = config.rope_scaling
    if scaling is None or scaling.type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0


def original_length(config: ModelConfig) -> int:
    """Positions that a model with `rope_scaling` was trained on before it was extended."""
    assert config.rope_scaling is not None
    told = config.rope_scaling.original_max_position_embeddings
    return told or round(config.max_position_embeddings / config.rope_scaling.factor)


def with_new_base(config: ModelConfig) -> ModelConfig:
    """The same positions with NTK-aware scaling written as what it is, another base.

    base * factor^(d / (d - 2)), so that the slowest of the d/2 pairs is slowed by `factor` exactly.
    """
    scaling = config.rope_scaling
    if scaling is None or scaling.type != "ntk":
        return config
    head_dim = config.width_per_head
    base = config.rope_theta * scaling.factor ** (head_dim / (head_dim - 2))
    return config.model_copy(update={"rope_theta": base, "rope_scaling": None})


def _kept_by_yarn(config: ModelConfig, scaling: RopeScaling) -> np.ndarray:
    """How much of each pair's own frequency stays: a ramp over pairs, between two bounds."""
    pairs = config.width_per_head // 2

    def pair_that_turns(rotations: float) -> float:
        length = original_length(config) / (2 * math.pi * rotations)
        return pairs * math.log(length) / math.log(config.rope_theta)

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.width_per_head - 1)
    if first == last:
        last += 0.001  # as transformers: a step instead of a division by zero
    ramp = (np.arange(pairs, dtype=np.float32) - first) / (last - first)
    return 1 - np.clip(ramp, 0, 1)


def _kept_by_llama3(config: ModelConfig, scaling: RopeScaling, plain: np.ndarray) -> np.ndarray:
    """How much of each pair's own frequency stays: by its turns within the original length."""
    turns = original_length(config) * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return np.clip((turns - low) / (high - low), 0, 1)
