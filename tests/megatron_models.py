"""Tiny random models and Megatron checkpoints of them, for tests."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.megatron.export import MegatronLayout, MegatronTarget
from dongwu_jax.interop.megatron.source import MegatronSource
from dongwu_jax.interop.tensors import model_tensors

Weights = dict[str, np.ndarray]

SMALL = {
    "vocab_size": 50,
    "padded_vocab_size": None,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_layers": 8,
    "num_heads": 16,
    "num_kv_heads": 16,
    "head_dim": 2,
    "max_position_embeddings": 64,
}


def small_config(**changes: object) -> ModelConfig:
    """Eight layers of sizes that eight ranks can divide."""
    return ModelConfig.model_validate(SMALL | changes)


def random_weights(config: ModelConfig, dtype: str = "float32") -> Weights:
    """Values by our name, in our layout."""
    rng = np.random.default_rng(0)
    return {
        tensor.name: rng.normal(size=tensor.shape).astype(dtype) for tensor in model_tensors(config)
    }


def write_checkpoint(
    folder: Path,
    config: ModelConfig,
    weights: Weights,
    layout: MegatronLayout,
    padded_vocab_size: int | None = None,
    **options: object,
) -> Path:
    """Write a Megatron checkpoint, float32 unless told otherwise."""
    folder.mkdir(parents=True)
    rows = padded_vocab_size or config.vocab_rows
    dtype = str(options.pop("dtype", "float32"))
    target = MegatronTarget(config, dtype, layout, rows, **options)
    target.write(folder, weights.__getitem__, lambda num_bytes: None)
    return folder


def read_all(source: MegatronSource) -> Weights:
    """Every tensor of a checkpoint."""
    return {name: source.read(name) for name in source.names()}


def load_with_torch(file: Path) -> dict:
    """What torch itself makes of a rank's file, without running any code of the file's."""
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(file, weights_only=True)


def change_rank(file: Path, change: Callable[[dict], object]) -> None:
    """Change the contents of a rank's file, by torch."""
    contents = load_with_torch(file)
    change(contents)
    torch.save(contents, file)


def flattened(tree: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Tensors of a nested dict by name, keys joined by /."""
    if isinstance(tree, torch.Tensor):
        return {prefix: tree}
    if not isinstance(tree, dict):
        return {}
    found: dict[str, torch.Tensor] = {}
    for key, value in tree.items():
        found |= flattened(value, f"{prefix}/{key}" if prefix else str(key))
    return found


def model_entries(checkpoint: dict) -> dict[str, torch.Tensor]:
    """The weights of a rank's file by name."""
    models = {key: value for key, value in checkpoint.items() if key.startswith("model")}
    return flattened(models)
