"""Rounding the blocks' weights to 8 bits once for all micro batches of a step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dongwu_jax.config import RunConfig
from dongwu_jax.models.fp8 import QuantizedWeight, largest_magnitude, quantize
from dongwu_jax.models.parameters import (
    Parameters,
    logical_axes,
    named_parameters,
    parameter_tree,
)
from dongwu_jax.models.projection import fp8_layers
from dongwu_jax.parallel.weights import largest_of_all


def quantized_weights(
    config: RunConfig, weights: Parameters
) -> tuple[Parameters, Callable[[Parameters], Parameters]]:
    """What a step differentiates, and how it becomes what the model computes with.

    Args:
        weights: in the dtype of computation, as they are stored.

    Returns:
        The weights with float32 zeros instead of those that are rounded, whose gradients are then
        float32; and the function that puts the rounded ones in. Without 8-bit products, `weights`
        as they are.
    """
    layers = fp8_layers(config.precision, config.model.num_layers)
    axes, named = logical_axes(config.model), named_parameters(weights)
    quantized = {}
    for name in [
        f"layers.{layer}.{matrix}" for layer in layers for matrix in _block_matrices(named)
    ]:
        largest = largest_of_all(largest_magnitude(named[name]), axes[name])
        quantized[name] = quantize(named[name], largest)
    slots = {name: jnp.zeros(named[name].shape, jnp.float32) for name in quantized}

    def put_in(differentiated: Parameters) -> Parameters:
        now = named_parameters(differentiated)
        rounded = {name: QuantizedWeight(quantized[name], now[name]) for name in quantized}
        return parameter_tree(now | rounded)

    return parameter_tree(named | slots), put_in


def _block_matrices(named: dict[str, jax.Array]) -> list[str]:
    """Names of a block's matrices without the number of the block."""
    first = "layers.0."
    return [
        name.removeprefix(first)
        for name in named
        if name.startswith(first) and name.endswith("_proj")
    ]
