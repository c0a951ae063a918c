"""Attention of the models in a run: the one that is trained, and its teacher."""

import functools

from dongwu_jax.config import ModelConfig, RunConfig
from dongwu_jax.models.attention import choose_attention, make_attention
from dongwu_jax.parallel.context import Attend
from dongwu_jax.parallel.sharding import LogicalSharding
from dongwu_jax.training.losses import Batch


def attention_of(
    config: RunConfig, model: ModelConfig, sharding: LogicalSharding, platform: str
) -> Attend:
    """The kernel for a model that works on this run's batches, on its own layout.

    Args:
        platform: "cpu" or "gpu".

    Raises:
        UserError: see `choose_attention`.
    """
    implementation = choose_attention(
        config.precision.attention, model, config.precision.compute_dtype, platform
    )
    return make_attention(implementation, sharding)


def attend_within(attend: Attend, micro_batch: Batch) -> Attend:
    """Attention that keeps packed samples apart, where a batch has any."""
    if "segments" not in micro_batch:
        return attend
    return functools.partial(attend, segments=micro_batch["segments"])
