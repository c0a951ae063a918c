"""One optimizer step: loss, gradients, clipping, AdamW. One compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dongwu_jax.config import RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.models.parameters import cast_matrices
from dongwu_jax.parallel.sharding import LogicalSharding
from dongwu_jax.training.attention import attention_of
from dongwu_jax.training.compilation import compiler_options
from dongwu_jax.training.gate import Gate, choose, open_gate, passes
from dongwu_jax.training.gradients import Objective
from dongwu_jax.training.losses import Batch, LanguageModelLoss, LossFunction
from dongwu_jax.training.optimizer import clip_by_global_norm, make_optimizer
from dongwu_jax.training.schedules import make_schedule
from dongwu_jax.training.state import TrainState, abstract_state
from dongwu_jax.training.trained_weights import Frozen

Metrics = dict[str, jax.Array]


def make_objective(
    config: RunConfig,
    sharding: LogicalSharding,
    platform: str,
    loss_function: LossFunction | None = None,
) -> Objective:
    """What the run minimises, on its mesh.

    Args:
        platform: "cpu" or "gpu", for the choice of the attention kernel.
        loss_function: None: next-token cross entropy.
    """
    attend = attention_of(config, config.model, sharding, platform)
    _check_fp8_units(config, sharding)
    loss_function = loss_function or LanguageModelLoss(config.training.loss_chunk_tokens)
    return Objective(config, sharding, loss_function, attend)


def _check_fp8_units(config: RunConfig, sharding: LogicalSharding) -> None:
    """Older GPUs would silently compute in bfloat16, and slower."""
    device = sharding.mesh.devices.flat[0]
    capability = float(getattr(device, "compute_capability", None) or "inf")
    if config.precision.matmul == "fp8" and capability < 8.9:
        raise UserError(
            f"precision.matmul=fp8 needs a GPU of compute capability 8.9 (H100 has 9.0), "
            f"{device.device_kind} has {capability}; use compute_dtype"
        )


def make_train_step(
    config: RunConfig, sharding: LogicalSharding, objective: Objective
) -> jax.stages.Wrapped:
    """Compile-ready `(state, batch, frozen, gate) -> (state, metrics)`; the old state is donated.

    The loss is the mean over all unmasked tokens of the global batch, however it is cut into micro
    batches. Metrics are float32 scalars: loss and what else the loss function names, gradient_norm
    (before clipping), learning_rate; and the bool `applied`: where it is False, `gate` has kept the
    state as it was. `frozen` are weights that nothing trains; None: none. No gate: an open one.
    """
    optimizer = make_optimizer(config.optimizer)
    schedule = make_schedule(config)
    dtype = config.precision.compute_dtype

    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, sharding))

    def step(
        state: TrainState, batch: Batch, frozen: Frozen | None = None, gate: Gate | None = None
    ) -> tuple[TrainState, Metrics]:
        scale = 1.0 / jnp.maximum(jnp.sum(batch["loss_mask"]), 1.0)
        weights = cast_matrices(state.parameters, dtype)
        losses, gradients = objective.loss_and_gradients(weights, batch, scale, frozen or Frozen())
        gradients, gradient_norm = clip_by_global_norm(gradients, config.optimizer.clip_norm)
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer_state, state.parameters
        )
        learning_rate = schedule(state.step)
        parameters = jax.tree.map(
            lambda parameter, update: parameter - learning_rate * update, state.parameters, updates
        )
        applied = passes(gate or open_gate(), losses["loss"], gradient_norm)
        updated = TrainState(state.step + 1, parameters, optimizer_state)
        metrics = losses | {"gradient_norm": gradient_norm, "learning_rate": learning_rate}
        return choose(applied, updated, state), metrics | {"applied": applied}

    return jax.jit(
        _exactly(step, config),
        donate_argnums=0,
        out_shardings=(layout, None),
        compiler_options=_options(config, sharding),
    )


def make_evaluation_step(config: RunConfig, objective: Objective) -> jax.stages.Wrapped:
    """Compile-ready `(state, batch, frozen) -> {"loss_sum", "weight"}` over one global batch."""

    def step(state: TrainState, batch: Batch, frozen: Frozen) -> Metrics:
        weights = cast_matrices(state.parameters, config.precision.compute_dtype)
        loss_sum = objective.loss(weights, batch, frozen)
        return {"loss_sum": loss_sum, "weight": jnp.sum(batch["loss_mask"])}

    return jax.jit(_exactly(step, config), compiler_options=_options(config, objective.sharding))


def _options(config: RunConfig, sharding: LogicalSharding) -> dict[str, bool]:
    devices = sharding.mesh.devices
    copies = devices.size > 1 or config.training.remat == "offload"
    platform, deterministic = devices.flat[0].platform, config.training.deterministic
    return compiler_options(platform, copies, deterministic=deterministic)


def _exactly(step: Callable, config: RunConfig) -> Callable:
    """`step`, traced so that float32 runs really multiply in float32."""
    exact = config.precision.compute_dtype == "float32"

    def traced(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest" if exact else "default"):
            return step(*arguments)

    return traced
