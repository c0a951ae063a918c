"""A model ready to compute with: weights on the device, and its tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import jax

from dongwu_jax.config import ModelConfig
from dongwu_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    load_fitting_tokenizer,
)
from dongwu_jax.errors import UserError
from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.sources import open_source
from dongwu_jax.models.parameters import Parameters, cast_matrices


@dataclass(frozen=True)
class LoadedModel:
    """Architecture, weights with matrices in the compute dtype, and tokenizer."""

    config: ModelConfig
    parameters: Parameters
    tokenizer: SentencePieceTokenizer | HuggingFaceTokenizer
    dtype: str


def load_model(path: Path, dtype: str | None = None, tokenizer: Path | None = None) -> LoadedModel:
    """Load a Hugging Face folder, a GGUF file or a checkpoint onto the default device.

    Args:
        dtype: "float32" or "bfloat16"; None: float32 on a CPU, bfloat16 elsewhere.
        tokenizer: takes the place of the model's own.

    Raises:
        UserError: there is no model, or no tokenizer, or they do not belong together.
    """
    source = open_source(path)
    try:
        place = tokenizer or source.tokenizer
        if place is None:
            raise UserError(f"{path}: has no tokenizer; name one with --tokenizer")
        config = source.config
        loaded = load_fitting_tokenizer(place, config.vocab_size)
        dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        parameters = cast_matrices(load_parameters(source.read, config), dtype)
        return LoadedModel(config, parameters, loaded, dtype)
    finally:
        source.close()
