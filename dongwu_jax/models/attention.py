"""Causal attention: which kernel, chosen in one place."""

import functools
import logging
from typing import Any, Literal

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
    segments: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention of each position over itself and those before it, scaled by head_dim^-0.5.

    Grouped-query attention when there are fewer key/value heads than query heads.

    Args:
        query: [batch, length, heads, head_dim].
        key, value: [batch, length, kv_heads, head_dim].
        implementation: "cudnn" or "xla".
        ring: mesh axis that splits the sequences in zigzag order; None: they are whole.
        segments: int32 [batch, length]; positions see those of their own segment. None: all one.
            With whole sequences only.

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
    return _attention(query, key, value, segments, implementation, ring)


# A custom VJP, so that a remat policy can keep the kernel's own residuals by the name "attention":
# naming the output outside would still run the kernel's forward again in the backward pass.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array | None,
    implementation: Implementation,
    ring: str | None,
) -> jax.Array:
    return _forward(query, key, value, segments, implementation, ring)[0]


_QUERY = ("batch", "attention_length", "attention_heads", "head_dim")
_KEY = ("batch", "attention_length", "attention_kv_heads", "head_dim")
_NORMALIZER = ("batch", "attention_heads", "attention_length")
_SEGMENTS = ("batch", "attention_length")

_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array | None,
    implementation: Implementation,
    ring: str | None,
) -> tuple[jax.Array, _Residuals]:
    def kernel(query: jax.Array, key: jax.Array, value: jax.Array, *apart: jax.Array) -> Any:
        if ring is not None:
            return ring_attention_forward(query, key, value, ring, implementation)
        return attention_forward(query, key, value, True, implementation, *apart)

    for x, axes in ((query, _QUERY), (key, _KEY), (value, _KEY)):
        record("attention kernel", x, axes)
    apart, apart_axes = ([], []) if segments is None else ([segments], [_SEGMENTS])
    run = per_device(kernel, [_QUERY, _KEY, _KEY, *apart_axes], [_QUERY, _NORMALIZER])
    outputs = run(query, key, value, *apart)
    output, log_normalizer = (checkpoint_name(x, "attention") for x in outputs)
    return output, (query, key, value, output, log_normalizer, segments)


def _backward(
    implementation: Implementation, ring: str | None, residuals: _Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    def kernel(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        output: jax.Array,
        log_normalizer: jax.Array,
        gradient: jax.Array,
        *apart: jax.Array,
    ) -> Any:
        given = query, key, value, output, log_normalizer, gradient
        if ring is not None:
            return ring_attention_backward(*given, ring, implementation)
        return attention_backward(*given, True, implementation, *apart)

    *kept, segments = residuals
    apart, apart_axes = ([], []) if segments is None else ([segments], [_SEGMENTS])
    in_axes = [_QUERY, _KEY, _KEY, _QUERY, _NORMALIZER, _QUERY, *apart_axes]
    run = per_device(kernel, in_axes, [_QUERY, _KEY, _KEY])
    return (*run(*kept, gradient, *apart), None)


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
