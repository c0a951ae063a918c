"""The teacher of a run: found, held against the student, and loaded when there are devices."""

import functools
import logging
from pathlib import Path

from dongwu_jax.config import RunConfig, parse_config
from dongwu_jax.config.distillation import DistillationConfig
from dongwu_jax.data.tokenizers import check_same_tokens, load_tokenizer
from dongwu_jax.errors import UserError
from dongwu_jax.interop.loading import load_and_close
from dongwu_jax.interop.model_source import ModelSource
from dongwu_jax.interop.sources import open_source
from dongwu_jax.training.distillation import TeacherModel

logger = logging.getLogger(__name__)


def resolve_teacher(config: RunConfig) -> tuple[RunConfig, TeacherModel | None]:
    """Open `distillation.teacher`, if set.

    Args:
        config: with a complete model section.

    Returns:
        The run, whose model knows the teacher's width where that is needed; and the teacher.

    Raises:
        UserError: the teacher cannot be read, or knows other tokens or too short sequences.
    """
    origin = config.distillation.teacher
    if origin is None:
        _warn_of_idle_settings(config)
        return config, None
    source = open_source(origin)
    check_teacher(source, origin, config)
    load = functools.partial(load_and_close, source, origin, what="the teacher")
    # Padding like the student's, so that both speak of the same rows.
    like_student = ("padded_vocab_size", "padded_vocab_in_softmax")
    model = source.config.model_copy(
        update={name: getattr(config.model, name) for name in like_student}
    )
    return _with_width(config, model.hidden_size), TeacherModel(model, load)


def _warn_of_idle_settings(config: RunConfig) -> None:
    """A forgotten teacher would otherwise not be noticed."""
    settings, usual = config.distillation, DistillationConfig()
    if settings.cache is not None:
        return
    idle = [
        f"{name}={getattr(settings, name)}"
        for name in type(settings).model_fields
        if getattr(settings, name) != getattr(usual, name)
    ]
    if idle:
        logger.warning(
            "distillation.%s: neither teacher nor cache is set, so the run learns from the text "
            "alone",
            ", ".join(idle),
        )


def check_teacher(source: ModelSource, origin: Path, config: RunConfig) -> None:
    """Whether a teacher's predictions mean the tokens that a run trains on, as long as they are.

    Raises:
        UserError: naming what differs.
    """
    length, longest = config.data.sequence_length, source.config.max_position_embeddings
    if length > longest:
        raise UserError(
            f"the teacher {origin} is meant for {longest} tokens, data.sequence_length is "
            f"{length}; shorten it, or extend the teacher first"
        )
    theirs, ours = source.config.vocab_size, config.model.vocab_size
    if theirs != ours:
        raise UserError(
            f"the teacher {origin} has a vocabulary of {theirs} tokens, the model one of {ours}; "
            "a teacher must share the student's tokenizer"
        )
    tokenizer = config.data.tokenizer
    if tokenizer is None or source.tokenizer is None:
        missing = "data.tokenizer is not set" if tokenizer is None else f"{origin} has none"
        logger.warning("tokenizers of teacher and data cannot be compared: %s", missing)
        return
    check_same_tokens(load_tokenizer(tokenizer), load_tokenizer(source.tokenizer))


def _with_width(config: RunConfig, hidden_size: int) -> RunConfig:
    """The run with room for a projection to the teacher's width, if one is learned."""
    width = hidden_size if config.distillation.hidden_weight else None
    settings = config.model_dump(mode="json")
    settings["model"]["teacher_hidden_size"] = width
    return parse_config(settings, source="the run with its teacher")
