"""Weights that a training run starts from, and the architecture that comes with them."""

import functools
import logging
from pathlib import Path

from dongwu_jax.config import ModelConfig, RunConfig, parse_config
from dongwu_jax.interop.loading import load_and_close, resolve_model_config
from dongwu_jax.interop.megatron.continuation import Continuation
from dongwu_jax.interop.model_source import ModelSource
from dongwu_jax.interop.sources import open_source
from dongwu_jax.models.parameters import Parameters, initial_parameters
from dongwu_jax.training.checkpoints.folders import is_checkpoint
from dongwu_jax.training.checkpoints.stored_weights import read_model_config
from dongwu_jax.training.state import StartingPoint

logger = logging.getLogger(__name__)

_NO_PART_OF_MODELS = ("teacher_projection",)  # trained beside one, with distillation.hidden_weight


def resolve_initial_weights(config: RunConfig) -> tuple[RunConfig, StartingPoint]:
    """Take the architecture from `training.initial_weights` or `continue_from`, if set.

    A run that already has a checkpoint takes it from there: it does not need the initial weights
    any more, unless it trains adapters to them.

    Returns:
        The run with its model section complete, and where it starts when it does not resume.

    Raises:
        UserError: the weights cannot be read, the model section contradicts them, or the run that
            made them cannot be continued in this way.
    """
    training = config.training
    if training.initial_weights is None and training.continue_from is None:
        return config, StartingPoint()
    if config.lora.rank and training.initial_weights is not None:
        return _beneath_adapters(config, training.initial_weights)
    if is_checkpoint(config.checkpoint.directory):
        found = read_model_config(config.checkpoint.directory)
        return _with_model(config, found, str(config.checkpoint.directory)), StartingPoint()
    if training.initial_weights is not None:
        return _from_weights(config, training.initial_weights)
    assert training.continue_from is not None
    return _from_megatron_run(config, training.continue_from)


def _from_weights(config: RunConfig, origin: Path) -> tuple[RunConfig, StartingPoint]:
    source, seed = open_source(origin), config.training.seed
    resolved = _with_model(config, _known_model(source, config.model, origin), str(origin))

    def load(model: ModelConfig, shardings: Parameters) -> Parameters:
        loaded = load_and_close(source, origin, model, shardings)
        return initial_parameters(model, seed, shardings, _NO_PART_OF_MODELS) | loaded

    return resolved, StartingPoint(load)


def _beneath_adapters(config: RunConfig, origin: Path) -> tuple[RunConfig, StartingPoint]:
    """Weights that stay as they are: a resumed run needs them, too."""
    source = open_source(origin)
    resolved = _with_model(config, _known_model(source, config.model, origin), str(origin))
    # As a checkpoint of adapters is to find it, from wherever it is read.
    training = resolved.training.model_copy(update={"initial_weights": origin.absolute()})
    load = functools.partial(load_and_close, source, origin)
    return resolved.model_copy(update={"training": training}), StartingPoint(load_base=load)


def _from_megatron_run(config: RunConfig, origin: Path) -> tuple[RunConfig, StartingPoint]:
    continuation = Continuation(origin)
    found = _known_model(continuation.source, config.model, origin)
    resolved = _with_model(config, found, str(origin))
    return resolved, continuation.starting_point(resolved)


def _known_model(source: ModelSource, requested: ModelConfig, origin: Path) -> ModelConfig:
    """The source's architecture; logs what its files do not say.

    A Megatron checkpoint knows the rows of its vocabulary, padding included; the run may know how
    many of them are tokens.
    """
    for note in source.notes:
        logger.info("%s: %s", origin, note)
    found, tokens = source.config, requested.vocab_size
    from_megatron = source.format in ("megatron", "torch_dist")
    told = from_megatron and "vocab_size" in requested.model_fields_set
    if not told or tokens >= found.vocab_rows:
        return found
    return found.model_copy(update={"vocab_size": tokens, "padded_vocab_size": found.vocab_rows})


def _with_model(config: RunConfig, found: ModelConfig, origin: str) -> RunConfig:
    """The run with the model that its weights have, checked as a whole again."""
    model = resolve_model_config(config.model, found, origin)
    settings = config.model_dump(mode="json") | {"model": model.model_dump(mode="json")}
    return parse_config(settings, source=f"the run with the model of {origin}")
