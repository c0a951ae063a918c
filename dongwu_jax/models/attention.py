"""Causal attention: which kernel, chosen in one place."""

import functools
import logging
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.models.attention_kernels import (
    Implementation,
    attention_backward,
    attention_forward,
)
from dongwu_jax.models.ring_attention import ring_attention_backward, ring_attention_forward
from dongwu_jax.parallel.collectives import per_device
from dongwu_jax.parallel.context import Attend, ulysses
from dongwu_jax.parallel.sharding import LogicalSharding, current_sharding, record

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
    if "context" in sharding.mesh_axes("attention_length"):
        return functools.partial(causal_attention, implementation=implementation, ring="context")
    attend = functools.partial(causal_attention, implementation=implementation)
    return ulysses(attend) if sharding.size("context") > 1 else attend


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    implementation: Implementation,
    ring: str | None = None,
) -> jax.Array:
    """Softmax attention of each position over itself and those before it, scaled by head_dim^-0.5.

    Grouped-query attention when there are fewer key/value heads than query heads.

    Args:
        query: [batch, length, heads, head_dim].
        key, value: [batch, length, kv_heads, head_dim].
        implementation: "cudnn" or "xla".
        ring: mesh axis that splits the sequences in zigzag order; None: they are whole.

    Returns:
        [batch, length, heads, head_dim] in the dtype of `query`.
    """
    sharding = current_sharding()
    if (
        sharding is not None
        and "tensor" in sharding.mesh_axes("attention_kv_heads")
        and key.shape[2] % sharding.size("tensor")
    ):
        # Too few to be split as the query heads are: each query head gets its own.
        key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    return _attention(query, key, value, implementation, ring)


# A custom VJP, so that a remat policy can keep the kernel's own residuals by the name "attention":
# naming the output outside would still run the kernel's forward again in the backward pass.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    implementation: Implementation,
    ring: str | None,
) -> jax.Array:
    return _forward(query, key, value, implementation, ring)[0]


_QUERY = ("batch", "attention_length", "attention_heads", "head_dim")
_KEY = ("batch", "attention_length", "attention_kv_heads", "head_dim")
_NORMALIZER = ("batch", "attention_heads", "attention_length")

_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    implementation: Implementation,
    ring: str | None,
) -> tuple[jax.Array, _Residuals]:
    if ring is None:
        kernel = functools.partial(attention_forward, causal=True, implementation=implementation)
    else:
        kernel = functools.partial(
            ring_attention_forward, axis_name=ring, implementation=implementation
        )
    for x, axes in ((query, _QUERY), (key, _KEY), (value, _KEY)):
        record("attention kernel", x, axes)
    run = per_device(kernel, [_QUERY, _KEY, _KEY], [_QUERY, _NORMALIZER])
    output, log_normalizer = (checkpoint_name(x, "attention") for x in run(query, key, value))
    return output, (query, key, value, output, log_normalizer)


def _backward(
    implementation: Implementation, ring: str | None, residuals: _Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    if ring is None:
        kernel = functools.partial(attention_backward, causal=True, implementation=implementation)
    else:
        kernel = functools.partial(
            ring_attention_backward, axis_name=ring, implementation=implementation
        )
    in_axes = [_QUERY, _KEY, _KEY, _QUERY, _NORMALIZER, _QUERY]
    return per_device(kernel, in_axes, [_QUERY, _KEY, _KEY])(*residuals, gradient)


_attention.defvjp(_forward, _backward)


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
