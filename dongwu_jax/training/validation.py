"""Loss on the validation samples, between steps of training."""

import math
from collections.abc import Callable
from typing import Any

from dongwu_jax.config import RunConfig
from dongwu_jax.data.loader import BatchLoader
from dongwu_jax.training.batches import BatchLayout
from dongwu_jax.training.state import TrainState
from dongwu_jax.training.trained_weights import Frozen


def evaluate(
    config: RunConfig,
    state: TrainState,
    program: Callable[..., Any],
    load: Callable[[int, int], BatchLoader],
    layout: BatchLayout,
    frozen: Frozen,
) -> dict[str, float]:
    """Token-weighted loss and perplexity over `evaluation.batches` validation batches.

    `order: megatron` goes on through the validation samples as Megatron does; otherwise each
    evaluation sees the same ones.

    Args:
        program: from `make_evaluation_step`.
        load: gives the validation batches from one number to before another.
    """
    batches, first = config.evaluation.batches, 0
    if config.data.order == "megatron":
        first = (int(state.step) // config.evaluation.interval - 1) * batches
    loader = load(first, first + batches)
    totals = [program(state, layout.place(batch), frozen) for batch in loader]
    loader.close()
    loss_sum = sum(float(total["loss_sum"]) for total in totals)
    loss = loss_sum / max(sum(float(total["weight"]) for total in totals), 1.0)
    return {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}
