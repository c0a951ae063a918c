"""Weights of a model on devices, and the architecture of a run that starts from them."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.model_source import ModelSource
from dongwu_jax.interop.targets import ReadTensor
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.models.parameters import (
    Parameters,
    abstract_parameters,
    logical_axes,
    named_parameters,
    parameter_tree,
)
from dongwu_jax.parallel.sharding import LogicalAxes

logger = logging.getLogger(__name__)

# What may differ between a run and the weights that it starts from.
_RUN_MAY_CHANGE = (
    "padded_vocab_size",
    "padded_vocab_in_softmax",
    "max_position_embeddings",
    "rope_scaling",
    "rope_theta",
    "initializer_range",
    "teacher_hidden_size",
)


def resolve_model_config(requested: ModelConfig, source: ModelConfig, origin: str) -> ModelConfig:
    """The architecture of a run that starts from given weights.

    The source decides; what the user set explicitly must agree with it, or be one of the few
    settings that a run may change.

    Args:
        origin: where the weights come from, for the error.

    Raises:
        UserError: a setting contradicts the weights.
    """
    changes = {}
    for field in requested.model_fields_set:
        wanted, found = getattr(requested, field), getattr(source, field)
        if field in _RUN_MAY_CHANGE:
            changes[field] = wanted
        elif _resolved(source, field, wanted) != _resolved(source, field, found):
            raise UserError(
                f"model.{field}={wanted}, but the weights of {origin} have {field}="
                f"{_resolved(source, field, found)}; leave the setting out to take theirs"
            )
    merged = source.model_copy(update=changes)
    if merged.vocab_rows < merged.vocab_size:
        raise UserError(
            f"model.padded_vocab_size={merged.vocab_rows} is smaller than the vocab_size="
            f"{merged.vocab_size} of {origin}"
        )
    return merged


def load_parameters(
    read: ReadTensor,
    config: ModelConfig,
    shardings: Parameters | None = None,
    progress: Callable[[str], None] = lambda name: None,
    dtype: str = "float32",
) -> Parameters:
    """Stored weights as arrays, one tensor at a time in host memory.

    Rows of the vocabulary that only padding adds are zero: an embedding never looked up, and a
    logit of zero, a definite value, where the softmax includes padding.

    Args:
        read: gives one tensor by our name, e.g. a source's `read`.
        config: the source's architecture, as `resolve_model_config` gives it.
        shardings: where each parameter shall lie, on any number of hosts; None: the default device.
        progress: called with each name when the tensor is in place.
        dtype: of matrices, as `cast_matrices` would have it.
    """
    shapes = named_parameters(abstract_parameters(config))
    axes = logical_axes(config)
    places = named_parameters(shardings) if shardings is not None else {}
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    loaded = {}
    for name in (tensor.name for tensor in model_tensors(config)):  # as files hold them
        wanted = shapes[name]
        values = fit_vocabulary(read(name), wanted.shape, axes[name], name)
        loaded[name] = jax.make_array_from_callback(
            wanted.shape,
            places.get(name, here),
            functools.partial(_part, values, dtype if len(wanted.shape) > 1 else "float32"),
        )
        progress(name)
    return parameter_tree(loaded)


def load_and_close(
    source: ModelSource,
    origin: Path,
    config: ModelConfig,
    shardings: Parameters,
    dtype: str = "float32",
    what: str = "weights",
) -> Parameters:
    """All weights of an open source, which is said in the log; the source is closed.

    Args:
        origin: where it was found, for the log.
        config, shardings, dtype: see `load_parameters`.
        what: the weights are to the run, for the log.
    """
    logger.info("loading %s (%s, %s) from %s", what, source.format, source.dtype, origin)
    try:
        return load_parameters(source.read, config, shardings, dtype=dtype)
    finally:
        source.close()


def _part(values: np.ndarray, dtype: str, index: tuple[slice, ...]) -> np.ndarray:
    # By way of float32: what a cast at once from float16 gives need not be the nearest.
    return np.ascontiguousarray(values[index], np.float32).astype(jnp.dtype(dtype), copy=False)


def _resolved(config: ModelConfig, field: str, value: object) -> object:
    """A setting's value, or what null stands for in this architecture."""
    if value is not None:
        return value
    derived = {
        "num_kv_heads": config.num_heads,
        "head_dim": config.hidden_size / config.num_heads,
    }
    return derived.get(field)


def fit_vocabulary(
    values: np.ndarray, shape: tuple[int, ...], axes: LogicalAxes, name: str
) -> np.ndarray:
    """Add zeros for padding rows that the source lacks; drop its surplus padding rows.

    Raises:
        UserError: the tensor differs in more than rows of the vocabulary.
    """
    if values.shape == shape:
        return values
    differing = [axis for axis, a, b in zip(axes, values.shape, shape, strict=True) if a != b]
    if differing != ["vocab"]:
        raise UserError(f"{name} has shape {values.shape} in the source, {shape} was expected")
    fitted = np.zeros(shape, values.dtype)
    shared = tuple(slice(min(a, b)) for a, b in zip(values.shape, shape, strict=True))
    fitted[shared] = values[shared]
    return fitted
