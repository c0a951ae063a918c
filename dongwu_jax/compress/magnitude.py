"""Scores of a model's parts by the size of their weights: a baseline that needs no text."""

import numpy as np

from dongwu_jax.compress.importance import Importance
from dongwu_jax.interop.model_source import ModelSource
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.models.parameters import logical_axes


def magnitude_scores(source: ModelSource) -> Importance:
    """Root of the sum of squares of all weights of a part, a tensor in memory at a time."""
    config = source.config
    layers, hidden = config.num_layers, config.hidden_size
    sums = {
        "layers": np.zeros(layers),
        "hidden": np.zeros(hidden),
        "mlp": np.zeros((layers, config.intermediate_size)),
        "heads": np.zeros((layers, config.num_heads)),
        "kv_heads": np.zeros((layers, config.kv_heads)),
    }
    axes = logical_axes(config)
    for tensor in model_tensors(config):
        squares = source.read(tensor.name).astype(np.float32)
        np.square(squares, out=squares)
        layer = int(tensor.name.split(".")[1]) if tensor.name.startswith("layers.") else None
        for dimension, axis in enumerate(axes[tensor.name]):
            others = tuple(d for d in range(squares.ndim) if d != dimension)
            if axis == "embed":
                sums["hidden"] += squares.sum(axis=others, dtype=np.float64)
            elif axis in ("mlp", "heads", "kv_heads"):
                sums[axis][layer] += squares.sum(axis=others, dtype=np.float64)
        if layer is not None:
            sums["layers"][layer] += float(squares.sum(dtype=np.float64))
    # A query head cannot work without the keys and values that it shares.
    shared = np.repeat(sums["kv_heads"], config.num_heads // config.kv_heads, axis=1)
    return Importance(
        np.sqrt(sums["layers"]),
        np.sqrt(sums["hidden"]),
        np.sqrt(sums["mlp"]),
        np.sqrt(sums["heads"] + shared),
        np.ones((2 * layers + 1, hidden)),
    )
