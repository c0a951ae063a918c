"""Whether a checkpoint may be continued by this run; where not, which setting differs."""

import logging
from pathlib import Path
from typing import Any

from dongwu_jax.config import ModelConfig, RunConfig
from dongwu_jax.data.fingerprint import Fingerprint, compare_fingerprints
from dongwu_jax.errors import UserError
from dongwu_jax.training.checkpoints.folders import newest_step
from dongwu_jax.training.checkpoints.stored_weights import DataState, read_run_config

logger = logging.getLogger(__name__)


def check_same_run(directory: Path, config: RunConfig) -> None:
    """Refuse to continue a checkpoint under settings that would change its meaning.

    Raises:
        UserError: the model or the batch size differs, or the checkpoint holds weights alone.
    """
    step = newest_step(directory)
    if not (step / "optimizer").is_dir():
        raise UserError(
            f"{step}: holds weights without optimizer state, so a run cannot go on from it; set "
            "training.initial_weights to it and checkpoint.directory to a new folder"
        )
    saved = read_run_config(step)
    was, now_is = _architecture(saved.model), _architecture(config.model)
    differences = [
        f"model.{name} was {was[name]!r} and is {now_is[name]!r}"
        for name in was
        if was[name] != now_is[name]
    ]
    differences += [
        f"lora.{name} was {was_set} and is {now_set}"
        for name, was_set in saved.lora.model_dump().items()
        if was_set != (now_set := getattr(config.lora, name))
    ]
    changed = _distillation_changes(saved, config)
    if changed:
        logger.warning("since the checkpoint, distillation has changed: %s", "; ".join(changed))
    before, now = saved.training.global_batch_size, config.training.global_batch_size
    if before != now:
        differences.append(f"training.global_batch_size was {before} and is {now}")
    if differences:
        raise UserError(
            f"{step}: cannot be continued by this run:\n  "
            + "\n  ".join(differences)
            + "\nSet them back, or start anew from its weights: training.initial_weights="
            f"{step} and another checkpoint.directory"
        )


def _distillation_changes(saved: RunConfig, config: RunConfig) -> list[str]:
    """What is learned from now on: allowed to change, but not without a word."""
    was, now_is = saved.distillation.model_dump(), config.distillation.model_dump()
    return [
        f"{name} was {was[name]} and is {now_is[name]}" for name in was if was[name] != now_is[name]
    ]


def _architecture(model: ModelConfig) -> dict[str, Any]:
    """The settings that a checkpoint's weights depend on, with what null stands for."""
    return model.model_dump(exclude={"initializer_range"}) | {
        "num_kv_heads": model.kv_heads,
        "head_dim": model.width_per_head,
        "padded_vocab_size": model.vocab_rows,
    }


def check_same_data(
    directory: Path, data_state: DataState, current: Fingerprint, config: RunConfig
) -> None:
    """Refuse to continue on other data than the checkpoint was trained on.

    Raises:
        UserError: listing what changed, unless `data.accept_changes` is set.
    """
    differences = compare_fingerprints(data_state["fingerprint"], current)
    if differences and not config.data.accept_changes:
        raise UserError(
            f"{directory}: the data changed since this checkpoint, so the remaining samples would "
            "not be those of the planned run:\n  "
            + "\n  ".join(differences)
            + "\nRestore the data, or set data.accept_changes=true to go on regardless"
        )
