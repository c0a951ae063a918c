"""Whether two models, whatever their formats, have the same weights and compute the same logits."""

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.model_source import MEGATRON_FORMATS, ModelSource
from dongwu_jax.interop.same_values import same_values
from dongwu_jax.interop.tensors import model_tensors

_SHAPE_SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "kv_heads",
    "width_per_head",
    "tie_word_embeddings",
    "qkv_bias",
)
_VALUE_SETTINGS = ("rms_norm_eps", "rope_theta", "rope_scaling")


@dataclass(frozen=True)
class TensorComparison:
    """One tensor of both models."""

    name: str
    kind: str  # the name within a block
    dtypes: tuple[str, str]
    equal: bool  # bit for bit; with differing dtypes, after rounding to the coarser
    largest_difference: float


def shared_vocabulary(first: ModelConfig, second: ModelConfig) -> int:
    """Rows of the vocabulary that both models have, padding left out where it is known."""
    return min(first.vocab_size, second.vocab_size)


def differing_settings(first: ModelConfig, second: ModelConfig) -> list[str]:
    """Settings that change what is computed, as "name: first, second".

    Raises:
        UserError: the models have tensors of different shapes.
    """
    for name in _SHAPE_SETTINGS:
        if getattr(first, name) != getattr(second, name):
            raise UserError(
                f"the models differ in {name}: {getattr(first, name)} and {getattr(second, name)}"
            )
    return [
        f"{name}: {getattr(first, name)}, {getattr(second, name)}"
        for name in _VALUE_SETTINGS
        if getattr(first, name) != getattr(second, name)
    ]


def differing_vocabulary(first: ModelSource, second: ModelSource) -> list[str]:
    """Their sizes when the larger one's surplus cannot be padding that its format does not tell."""
    larger, smaller = first, second
    if first.config.vocab_size < second.config.vocab_size:
        larger, smaller = second, first
    told = larger.config.vocab_size < larger.config.vocab_rows
    if larger.config.vocab_size == smaller.config.vocab_size:
        return []
    if larger.format in MEGATRON_FORMATS and not told:
        return []
    return [f"vocab_size: {first.config.vocab_size}, {second.config.vocab_size}"]


def compare_weights(first: ModelSource, second: ModelSource) -> Iterator[TensorComparison]:
    """Every tensor of both, one at a time in memory; see `differing_settings` for shapes."""
    vocabulary = shared_vocabulary(first.config, second.config)
    shared = first.config.model_copy(update={"vocab_size": vocabulary, "padded_vocab_size": None})
    for tensor in model_tensors(shared):
        kept = tuple(slice(size) for size in tensor.shape)
        values, others = first.read(tensor.name)[kept], second.read(tensor.name)[kept]
        dtypes = (values.dtype.name, others.dtype.name)
        equal = _equal(values, others)
        difference = 0.0 if equal else _largest_difference(values, others)
        yield TensorComparison(tensor.name, tensor.row.name, dtypes, equal, difference)


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    if first.dtype != second.dtype:
        coarser = min(first.dtype, second.dtype, key=lambda dtype: ml_dtypes.finfo(dtype).nmant)
        with np.errstate(over="ignore"):
            first, second = first.astype(coarser), second.astype(coarser)
    return same_values(first, second)


def _largest_difference(first: np.ndarray, second: np.ndarray) -> float:
    """NaN where either has one, or both the same infinity, beside other differences."""
    wide = np.float64 if np.float64 in (first.dtype, second.dtype) else np.float32
    with np.errstate(invalid="ignore"):
        difference = np.abs(first.astype(wide) - second.astype(wide))
    return float(difference.max(initial=0.0))
