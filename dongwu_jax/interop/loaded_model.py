"""A model ready to compute with: weights on devices, and its tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import NamedSharding

from dongwu_jax.config import ModelConfig
from dongwu_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    load_fitting_tokenizer,
)
from dongwu_jax.errors import UserError
from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.sources import open_source
from dongwu_jax.models.parameters import Parameters, parameter_shardings
from dongwu_jax.parallel.mesh import MESH_AXES, make_mesh
from dongwu_jax.parallel.sharding import LogicalSharding, resolve_rules


@dataclass(frozen=True)
class LoadedModel:
    """Architecture, weights with matrices in the compute dtype, and tokenizer.

    Attributes:
        sharding: the devices, and how the weights lie on them.
    """

    config: ModelConfig
    parameters: Parameters
    tokenizer: SentencePieceTokenizer | HuggingFaceTokenizer
    dtype: str
    sharding: LogicalSharding

    @property
    def matmul_precision(self) -> str:
        """For `jax.default_matmul_precision`: float32 models really multiply in float32."""
        return "highest" if self.dtype == "float32" else "default"

    @property
    def rows(self) -> NamedSharding:
        """How the sequences of a batch lie on the devices."""
        return NamedSharding(self.sharding.mesh, self.sharding.manual_spec(("batch",)))


def default_dtype() -> str:
    """In which a model computes unless told otherwise."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def load_model(
    path: Path,
    dtype: str | None = None,
    tokenizer: Path | None = None,
    devices: Sequence[jax.Device] | None = None,
    fsdp: int = 1,
) -> LoadedModel:
    """Load a Hugging Face folder, a GGUF file or a checkpoint.

    Args:
        dtype: "float32" or "bfloat16"; None: float32 on a CPU, bfloat16 elsewhere.
        tokenizer: takes the place of the model's own.
        devices: that compute, each on its own sequences; None: the default device.
        fsdp: how many of them share one copy of the weights, for a model that is too big for one.

    Raises:
        UserError: there is no model, or no tokenizer, or they do not belong together, or the
            devices cannot share the weights.
    """
    source = open_source(path)
    try:
        place = tokenizer or source.tokenizer
        if place is None:
            raise UserError(f"{path}: has no tokenizer; name one with --tokenizer")
        config = source.config
        loaded = load_fitting_tokenizer(place, config.vocab_size)
        dtype = dtype or default_dtype()
        sharding = _sharding(devices or jax.local_devices()[:1], fsdp)
        shardings = parameter_shardings(config, sharding)
        parameters = load_parameters(source.read, config, shardings, dtype=dtype)
        return LoadedModel(config, parameters, loaded, dtype, sharding)
    finally:
        source.close()


def _sharding(devices: Sequence[jax.Device], fsdp: int) -> LogicalSharding:
    if len(devices) % fsdp:
        raise UserError(f"fsdp={fsdp}: must divide the number of devices, {len(devices)}")
    shape = dict.fromkeys(MESH_AXES, 1) | {"data": len(devices) // fsdp, "fsdp": fsdp}
    return LogicalSharding(make_mesh(shape, devices), resolve_rules({}), "float32")
