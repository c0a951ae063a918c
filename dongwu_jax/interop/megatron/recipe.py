"""How the recipe of a run differs from that of the Megatron run it goes on with."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from dongwu_jax.config import RunConfig
from dongwu_jax.interop.megatron.training_state import MegatronRun

Setting = tuple[str, Any, Any]  # our name, our value, Megatron's (None: the file does not say)

_SCHEDULE_TYPES = {"WSD": "wsd"}

# Options of Megatron's that this trainer has no setting for, and the value that it works with.
_ONLY_IN_MEGATRON = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "optimizer": "adam",
    "lr_warmup_init": 0.0,
    "weight_decay_incr_style": "constant",
    "decoupled_lr": None,
    "reset_position_ids": False,
    "reset_attention_mask": False,
}


def recipe_differences(run: MegatronRun, config: RunConfig) -> list[str]:
    """One line for each setting that is not what the checkpoint was trained with."""
    differences = [
        f"{name}={_shown(ours)}, the checkpoint was trained with {_shown(theirs)}"
        for settings in (_optimizer, _schedule, _data)
        for name, ours, theirs in settings(run, config)
        if theirs is not None and not _same(ours, theirs)
    ]
    return differences + _without_counterpart(run.arguments) + _skipped(run)


def _optimizer(run: MegatronRun, config: RunConfig) -> Iterator[Setting]:
    ours, arguments, scheduler = config.optimizer, run.arguments, run.scheduler
    yield (
        "optimizer.learning_rate",
        ours.learning_rate,
        scheduler.get("max_lr", arguments.get("lr")),
    )
    decay = scheduler.get("end_wd", arguments.get("weight_decay"))
    yield "optimizer.weight_decay", ours.weight_decay, decay
    yield "optimizer.beta1", ours.beta1, arguments.get("adam_beta1")
    yield "optimizer.beta2", ours.beta2, arguments.get("adam_beta2")
    yield "optimizer.epsilon", ours.epsilon, arguments.get("adam_eps")
    yield "optimizer.clip_norm", ours.clip_norm or 0.0, arguments.get("clip_grad")
    yield "precision.compute_dtype", config.precision.compute_dtype, _compute_dtype(arguments)


def _compute_dtype(arguments: Mapping[str, Any]) -> str | None:
    if "bf16" not in arguments:
        return None
    if arguments["bf16"]:
        return "bfloat16"
    return "float16" if arguments.get("fp16") else "float32"


def _schedule(run: MegatronRun, config: RunConfig) -> Iterator[Setting]:
    """The learning rate; lengths in samples."""
    arguments, scheduler, ours = run.arguments, run.scheduler, config.schedule
    batch, length = config.training.global_batch_size, config.data.sequence_length
    whole = config.training.duration.in_samples(batch, length)
    style = scheduler.get("lr_decay_style", arguments.get("lr_decay_style"))
    yield "schedule.type", ours.type, _SCHEDULE_TYPES.get(str(style), style)
    lowest = scheduler.get("min_lr", arguments.get("min_lr"))
    yield "schedule.min_learning_rate", ours.min_learning_rate, lowest
    warmup = scheduler.get("lr_warmup_steps", _in_samples(arguments, "lr_warmup", batch))
    yield "schedule.warmup in samples", ours.warmup.in_samples(batch, length), warmup
    trained = _in_samples(arguments, "train", batch)
    end = scheduler.get("lr_decay_steps", _in_samples(arguments, "lr_decay", batch) or trained)
    decay = None if ours.decay is None else ours.decay.in_samples(batch, length)
    if ours.type in ("linear", "cosine"):
        yield "schedule.decay in samples", whole if decay is None else decay, end
    if ours.type == "wsd":
        falling = _in_samples(arguments, "lr_wsd_decay", batch)
        yield "schedule.decay in samples", whole / 10 if decay is None else decay, falling
        yield "training.duration in samples, where the decay ends", whole, end
        shape = arguments.get("lr_wsd_decay_style")
        yield "the shape of the decay", "linear", shape
    yield "training.duration (part of the sample order) in samples", whole, trained


def _data(run: MegatronRun, config: RunConfig) -> Iterator[Setting]:
    data, model, arguments = config.data, config.model, run.arguments
    yield "data.order", data.order, "megatron"
    yield "data.seed", data.seed, arguments.get("seed")
    yield "data.sequence_length", data.sequence_length, arguments.get("seq_length")
    yield "data.eod_mask_loss", data.eod_mask_loss, arguments.get("eod_mask_loss")
    if data.validation_blend is None:
        yield "data.split", data.split, arguments.get("split")
    if model.vocab_rows > model.vocab_size:
        yield "model.padded_vocab_in_softmax", model.padded_vocab_in_softmax, True


def _without_counterpart(arguments: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={_shown(arguments[name])} in Megatron; this trainer has no such setting and works "
        f"as with {_shown(value)}"
        for name, value in _ONLY_IN_MEGATRON.items()
        if name in arguments and not _same(value, arguments[name])
    ]


def _skipped(run: MegatronRun) -> list[str]:
    """Iterations without an update move Megatron's data on, but not its schedule."""
    counted = run.scheduler.get("num_steps")
    if counted is None or counted == run.consumed_samples:
        return []
    return [
        f"Megatron's schedule had counted {counted} samples when {run.consumed_samples} were "
        "consumed (skipped iterations); here the learning rate follows the samples consumed"
    ]


def _in_samples(arguments: Mapping[str, Any], name: str, batch: int) -> int | None:
    """A length that Megatron takes in samples or in iterations."""
    samples, iterations = arguments.get(f"{name}_samples"), arguments.get(f"{name}_iters")
    if samples:
        return samples
    return None if iterations is None else iterations * batch


def _same(ours: Any, theirs: Any) -> bool:
    numbers = (int, float)
    if isinstance(ours, numbers) and isinstance(theirs, numbers):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    return str(ours).replace(" ", "") == str(theirs).replace(" ", "")


def _shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
