"""Weights that a training run starts from, and the architecture that comes with them."""

import logging

from dongwu_jax.config import ModelConfig, RunConfig, parse_config
from dongwu_jax.interop.sources import load_parameters, open_source, resolve_model_config
from dongwu_jax.models.parameters import Parameters
from dongwu_jax.training.checkpoints import is_checkpoint, read_model_config
from dongwu_jax.training.state import LoadParameters

logger = logging.getLogger(__name__)


def resolve_initial_weights(config: RunConfig) -> tuple[RunConfig, LoadParameters | None]:
    """Take the architecture from `training.initial_weights`, when there are any.

    A run that already has a checkpoint takes it from there: it does not need the initial weights
    any more.

    Returns:
        The run with its model section complete, and how to load the weights (None: fresh ones).

    Raises:
        UserError: the weights cannot be read, or the model section contradicts them.
    """
    origin = config.training.initial_weights
    if origin is None:
        return config, None
    if is_checkpoint(config.checkpoint.directory):
        found = read_model_config(config.checkpoint.directory)
        return _with_model(config, found, str(config.checkpoint.directory)), None
    source = open_source(origin)
    resolved = _with_model(config, source.config, str(origin))

    def load(model: ModelConfig, shardings: Parameters) -> Parameters:
        logger.info("loading %s weights (%s) from %s", source.format, source.dtype, origin)
        try:
            return load_parameters(source, model, shardings)
        finally:
            source.close()

    return resolved, load


def _with_model(config: RunConfig, found: ModelConfig, origin: str) -> RunConfig:
    """The run with the model that its weights have, checked as a whole again."""
    model = resolve_model_config(config.model, found, origin)
    settings = config.model_dump(mode="json") | {"model": model.model_dump(mode="json")}
    return parse_config(settings, source=f"the run with the model of {origin}")
