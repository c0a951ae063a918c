"""Causal attention: which kernel, chosen in one place."""

import functools
import logging
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.context import Attend, ulysses
from dongwu_jax.parallel.sharding import LogicalSharding

Implementation = Literal["cudnn", "xla"]

logger = logging.getLogger(__name__)


def choose_attention(
    requested: Literal["auto", "cudnn", "xla"], config: ModelConfig, dtype: str, platform: str
) -> Implementation:
    """Resolve `precision.attention` to "cudnn" or "xla".

    Args:
        requested: "auto", "cudnn" or "xla".
        dtype: compute dtype by name.
        platform: "cpu" or "gpu".

    Raises:
        UserError: cudnn was asked for by name and cannot run here; the message says why.
    """
    obstacle = _cudnn_obstacle(config, dtype, platform)
    if requested == "cudnn" and obstacle:
        raise UserError(f"precision.attention=cudnn: {obstacle}; use auto or xla")
    if requested != "auto":
        return requested
    choice: Implementation = "xla" if obstacle else "cudnn"
    logger.info("attention: %s%s", choice, f" ({obstacle})" if obstacle else "")
    return choice


def _cudnn_obstacle(config: ModelConfig, dtype: str, platform: str) -> str | None:
    """Why cuDNN's flash attention cannot run, or None."""
    if platform != "gpu":
        return f"cuDNN needs a GPU, this is {platform}"
    if dtype != "bfloat16":
        return f"cuDNN attention needs bfloat16, precision.compute_dtype is {dtype}"
    if config.width_per_head % 8 or config.width_per_head > 128:
        return (
            "cuDNN attention needs a head_dim of at most 128 that is a multiple of 8, "
            f"not {config.width_per_head}"
        )
    return None


def make_attention(implementation: Implementation, sharding: LogicalSharding) -> Attend:
    """Causal attention of (query, key, value) on this mesh, however it splits the sequences."""

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return causal_attention(query, key, value, implementation)

    if sharding.size("context") == 1:
        return attend
    return ulysses(attend)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def causal_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: Implementation
) -> jax.Array:
    """Softmax attention of each position over itself and those before it, scaled by head_dim^-0.5.

    Grouped-query attention when there are fewer key/value heads than query heads. A custom VJP, so
    that a remat policy can keep the kernel's own residuals by the name "attention": naming the
    output outside would still run the kernel's forward again in the backward pass.

    Args:
        query: [batch, length, heads, head_dim].
        key, value: [batch, length, kv_heads, head_dim].
        implementation: "cudnn" or "xla".

    Returns:
        [batch, length, heads, head_dim] in the dtype of `query`.
    """
    return _attend(query, key, value, implementation)


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: Implementation
) -> jax.Array:
    return jax.nn.dot_product_attention(
        query, key, value, is_causal=True, implementation=implementation
    )


def _forward(query, key, value, implementation):  # type: ignore[no-untyped-def]
    output, vjp = jax.vjp(
        functools.partial(_attend, implementation=implementation), query, key, value
    )
    output = checkpoint_name(output, "attention")
    if implementation == "xla":  # its residuals are length x length: cheaper to compute again
        return output, vjp
    leaves, structure = jax.tree.flatten(vjp)
    inputs = (id(query), id(key), id(value))
    leaves = [_name_residual(leaf, output, is_input=id(leaf) in inputs) for leaf in leaves]
    return output, jax.tree.unflatten(structure, leaves)


def _name_residual(leaf: jax.Array, output: jax.Array, is_input: bool) -> jax.Array:
    """Inputs come from elsewhere; the output is saved once, under one tracer; the rest is named."""
    if is_input:
        return leaf
    if leaf.shape == output.shape and leaf.dtype == output.dtype:
        return output
    return checkpoint_name(leaf, "attention")


def _backward(implementation, vjp, gradient):  # type: ignore[no-untyped-def]
    return vjp(gradient)


causal_attention.defvjp(_forward, _backward)


def cached_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, query_positions: jax.Array
) -> jax.Array:
    """Attention of new positions over a key/value cache, for generation.

    Args:
        query: [batch, new, heads, head_dim].
        key, value: the whole cache, [batch, capacity, kv_heads, head_dim].
        query_positions: int32 [batch, new]; slot j is seen by a query at position p when j <= p.

    Returns:
        [batch, new, heads, head_dim].
    """
    slots = jnp.arange(key.shape[1])
    visible = slots[None, None, None, :] <= query_positions[:, None, :, None]
    return jax.nn.dot_product_attention(query, key, value, mask=visible, implementation="xla")
