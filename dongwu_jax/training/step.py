"""One optimizer step: loss, gradients over micro batches, clipping, AdamW. One compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dongwu_jax.config import RunConfig
from dongwu_jax.models.attention import causal_attention, choose_attention
from dongwu_jax.models.llama import Llama
from dongwu_jax.models.losses import next_token_losses
from dongwu_jax.models.parameters import Parameters, bind, cast_matrices
from dongwu_jax.parallel.sharding import LogicalSharding, constrain, use_sharding
from dongwu_jax.training.optimizer import clip_by_global_norm, make_optimizer
from dongwu_jax.training.schedules import make_schedule
from dongwu_jax.training.state import TrainState, abstract_state

# tokens, labels: int32, loss_mask: float32; each [accumulate, batch, length]
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
LossFunction = Callable[[Llama, Batch], jax.Array]


def language_model_loss(config: RunConfig, platform: str) -> LossFunction:
    """Next-token cross entropy: the sum over a micro batch of loss times `loss_mask`."""
    implementation = choose_attention(
        config.precision.attention, config.model, config.precision.compute_dtype, platform
    )
    training = config.training

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return causal_attention(query, key, value, implementation)

    def loss(model: Llama, batch: Batch) -> jax.Array:
        tokens = batch["tokens"]
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = model.hidden_states(
            tokens, positions, attend, training.remat, training.scan_layers
        )
        losses = next_token_losses(model, hidden, batch["labels"], training.loss_chunk_tokens)
        return jnp.sum(losses * batch["loss_mask"])

    return loss


def make_train_step(
    config: RunConfig, sharding: LogicalSharding, loss_function: LossFunction
) -> jax.stages.Wrapped:
    """Compile-ready `(state, batch) -> (state, metrics)`; the old state is donated.

    The loss is the mean over all unmasked tokens of the global batch, however it is cut into micro
    batches. Metrics are float32 scalars: loss, gradient_norm (before clipping), learning_rate.
    """
    optimizer = make_optimizer(config.optimizer)
    schedule = make_schedule(config)
    dtype = config.precision.compute_dtype

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        total_weight = jnp.maximum(jnp.sum(batch["loss_mask"]), 1.0)

        def micro_loss(parameters: Parameters, micro_batch: Batch) -> jax.Array:
            micro_batch = {key: constrain(x, "batch", "length") for key, x in micro_batch.items()}
            return loss_function(bind(config.model, parameters), micro_batch) / total_weight

        compute_parameters = cast_matrices(state.parameters, dtype)
        loss, gradients = _accumulate(micro_loss, compute_parameters, state.parameters, batch)
        gradients, gradient_norm = clip_by_global_norm(gradients, config.optimizer.clip_norm)
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer_state, state.parameters
        )
        learning_rate = schedule(state.step)
        parameters = jax.tree.map(
            lambda parameter, update: parameter - learning_rate * update, state.parameters, updates
        )
        metrics = {"loss": loss, "gradient_norm": gradient_norm, "learning_rate": learning_rate}
        return TrainState(state.step + 1, parameters, optimizer_state), metrics

    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, sharding))
    return jax.jit(
        _traced_under(step, config, sharding), donate_argnums=0, out_shardings=(layout, None)
    )


def make_evaluation_step(
    config: RunConfig, sharding: LogicalSharding, loss_function: LossFunction
) -> jax.stages.Wrapped:
    """Compile-ready `(state, batch) -> {"loss_sum", "weight"}` over one global batch."""

    def step(state: TrainState, batch: Batch) -> Metrics:
        parameters = cast_matrices(state.parameters, config.precision.compute_dtype)
        model = bind(config.model, parameters)

        def add(total: jax.Array, micro_batch: Batch) -> tuple[jax.Array, None]:
            return total + loss_function(model, micro_batch), None

        loss_sum, _ = jax.lax.scan(add, jnp.zeros((), jnp.float32), batch)
        return {"loss_sum": loss_sum, "weight": jnp.sum(batch["loss_mask"])}

    return jax.jit(_traced_under(step, config, sharding))


def _accumulate(
    micro_loss: Callable[[Parameters, Batch], jax.Array],
    parameters: Parameters,
    masters: Parameters,
    batch: Batch,
) -> tuple[jax.Array, Parameters]:
    """Sum losses and float32 gradients over the leading axis of the batch."""
    gradient_of = jax.value_and_grad(micro_loss)
    if next(iter(batch.values())).shape[0] == 1:
        loss, gradients = gradient_of(parameters, jax.tree.map(lambda x: x[0], batch))
        return loss, jax.tree.map(lambda gradient: gradient.astype(jnp.float32), gradients)

    def add(total: Any, micro_batch: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient_of(parameters, micro_batch)), None

    zeros = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, masters)
    (loss, gradients), _ = jax.lax.scan(add, zeros, batch)
    return loss, gradients


def _traced_under(step: Callable, config: RunConfig, sharding: LogicalSharding) -> Callable:
    """`step`, traced under the logical rules; float32 runs really multiply in float32."""
    exact = config.precision.compute_dtype == "float32"

    def traced(state: TrainState, batch: Batch) -> Any:
        with (
            use_sharding(sharding),
            jax.default_matmul_precision("highest" if exact else "default"),
        ):
            return step(state, batch)

    return traced
