"""Whether a checkpoint may be continued by this run; where not, which setting differs."""

from pathlib import Path

from dongwu_jax.config import RunConfig
from dongwu_jax.data.fingerprint import Fingerprint, compare_fingerprints
from dongwu_jax.errors import UserError
from dongwu_jax.training.checkpoints import DataState, newest_step, read_run_config


def check_same_run(directory: Path, config: RunConfig) -> None:
    """Refuse to continue a checkpoint under settings that would change its meaning.

    Raises:
        UserError: the model, the batch size or the sequence length differs, or the checkpoint
            holds weights alone.
    """
    step = newest_step(directory)
    if not (step / "optimizer").is_dir():
        raise UserError(
            f"{step}: holds weights without optimizer state, so a run cannot go on from it; set "
            "training.initial_weights to it and checkpoint.directory to a new folder"
        )
    saved = read_run_config(step)
    differences = [
        f"model.{name} was {getattr(saved.model, name)!r} and is {getattr(config.model, name)!r}"
        for name in type(config.model).model_fields
        if getattr(saved.model, name) != getattr(config.model, name)
    ]
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
