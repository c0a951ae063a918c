"""Learning rate as a function of the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dongwu_jax.config import RunConfig

Schedule = Callable[[jax.Array], jax.Array]


def make_schedule(config: RunConfig) -> Schedule:
    """The learning rate of a step, from the samples consumed before it, as Megatron-LM counts.

    Warm-up rises linearly from 0 and reaches the peak after `schedule.warmup`; the first step with
    a warm-up therefore has rate 0. `linear` and `cosine` then fall to the minimum at
    `schedule.decay`; `wsd` stays at the peak and falls linearly over the last `schedule.decay`.

    Returns:
        A traceable function of an int32 step (0 for the first) giving a float32 rate.
    """
    batch, length = config.training.global_batch_size, config.data.sequence_length
    peak, lowest = config.optimizer.learning_rate, config.schedule.min_learning_rate
    warmup = config.schedule.warmup.in_samples(batch, length)
    whole = config.training.duration.in_samples(batch, length)
    decay_start, decay_end = _decay_range(config, warmup, whole)
    kind = config.schedule.type

    def learning_rate(step: jax.Array) -> jax.Array:
        consumed = step.astype(jnp.float32) * batch
        rising = peak * consumed / max(warmup, 1.0)
        fraction = (consumed - decay_start) / max(decay_end - decay_start, 1.0)
        fraction = jnp.clip(fraction, 0.0, 1.0)
        if kind == "constant":
            share = jnp.ones_like(fraction)
        elif kind == "cosine":
            share = 0.5 * (jnp.cos(jnp.pi * fraction) + 1.0)
        else:
            share = 1.0 - fraction
        return jnp.where(consumed < warmup, rising, lowest + (peak - lowest) * share)

    return learning_rate


def _decay_range(config: RunConfig, warmup: float, whole: float) -> tuple[float, float]:
    """Samples at which the decay begins and ends."""
    batch, length = config.training.global_batch_size, config.data.sequence_length
    decay = config.schedule.decay
    if config.schedule.type == "wsd":
        span = decay.in_samples(batch, length) if decay else whole / 10
        return whole - span, whole
    return warmup, decay.in_samples(batch, length) if decay else whole
