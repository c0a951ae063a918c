"""Softmax attention on one device, forward and backward apart, as ring attention needs them.

Plain functions of local arrays: no custom VJP and no mesh inside. The backward pass takes the
output and the log normalizer as arguments, so both may cover more keys than the ones it is given.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from dongwu_jax.errors import UserError

Implementation = Literal["cudnn", "xla"]


def attention_forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: bool,
    implementation: Implementation,
    segments: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of every query over these keys, scaled by head_dim^-0.5.

    Query head n reads key/value head n // (heads // kv_heads).

    Args:
        query: [batch, length, heads, head_dim].
        key, value: [batch, key_length, kv_heads, head_dim].
        causal: query i sees keys 0 to i; needs key_length == length.
        implementation: "cudnn" (bfloat16 on a GPU) or "xla".
        segments: int32 [batch, length]; a query sees only keys of its own segment. None: all one.
            With causal only.

    Returns:
        The output [batch, length, heads, head_dim] in the dtype of `query`, and the log normalizer
        (logsumexp of the scaled scores) float32 [batch, heads, length].

    Raises:
        ValueError: the shapes do not fit.
        UserError: this version of jax keeps other residuals of cuDNN's attention than known here.
    """
    _check_shapes(query, key, value, causal)
    if implementation == "cudnn":
        return _cudnn_forward(query, key, value, causal, segments)
    scores = _scores(query, key, causal, segments)
    log_normalizer = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - log_normalizer[..., None]).astype(value.dtype)
    output = jnp.einsum("bkgts,bskh->btkgh", weights, value, preferred_element_type=jnp.float32)
    batch, length, heads, _ = query.shape
    return (
        output.reshape(query.shape).astype(query.dtype),
        log_normalizer.reshape(batch, heads, length),
    )


def attention_backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    output: jax.Array,
    log_normalizer: jax.Array,
    gradient: jax.Array,
    causal: bool,
    implementation: Implementation,
    segments: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The part of the gradients that goes through these keys.

    With p = exp(score - log_normalizer), the gradient of a score is p * (gradient . value -
    gradient . output) (FlashAttention-2, https://arxiv.org/abs/2307.08691, section 3.1.2). Nothing
    else is needed from other keys, so the parts over disjoint sets of keys add up.

    Args:
        query, key, value, causal, implementation, segments: as in `attention_forward`.
        output: [batch, length, heads, head_dim] over all keys of the whole attention.
        log_normalizer: float32 [batch, heads, length] over the same keys.
        gradient: of the loss with respect to `output`, same shape.

    Returns:
        Gradients of query, key and value, in their shapes and dtypes.

    Raises:
        ValueError, UserError: as `attention_forward`.
    """
    _check_shapes(query, key, value, causal)
    gradient = gradient.astype(output.dtype)
    if implementation == "cudnn":
        return _cudnn_backward(
            query, key, value, output, log_normalizer, gradient, causal, segments
        )
    groups = (key.shape[2], query.shape[2] // key.shape[2])
    grouped_query, grouped_gradient = _group(query, groups), _group(gradient, groups)
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    normalizer = log_normalizer.reshape(query.shape[0], *groups, query.shape[1], 1)
    weights = jnp.exp(_scores(query, key, causal, segments) - normalizer)
    inner = dot("btkgh,btkgh->bkgt", grouped_gradient, _group(output, groups))[..., None]
    of_weights = dot("btkgh,bskh->bkgts", grouped_gradient, value)
    of_scores = (weights * (of_weights - inner) * _scale(query)).astype(query.dtype)

    of_query = dot("bkgts,bskh->btkgh", of_scores, key).reshape(query.shape)
    of_key = dot("bkgts,btkgh->bskh", of_scores, grouped_query)
    of_value = dot("bkgts,btkgh->bskh", weights.astype(value.dtype), grouped_gradient)
    return of_query.astype(query.dtype), of_key.astype(key.dtype), of_value.astype(value.dtype)


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> None:
    batch, length, heads, head_dim = query.shape
    if key.shape != value.shape or (batch, head_dim) != (key.shape[0], key.shape[3]):
        raise ValueError(
            f"attention: query {query.shape}, key {key.shape} and value {value.shape} must agree "
            "in batch and head_dim, key and value in everything"
        )
    if heads % key.shape[2]:
        raise ValueError(f"attention: {heads} heads are not a multiple of {key.shape[2]} kv heads")
    if causal and key.shape[1] != length:
        raise ValueError(
            f"causal attention of {length} queries over {key.shape[1]} keys: lengths must be equal"
        )


def _scale(query: jax.Array) -> float:
    return float(query.shape[-1] ** -0.5)


def _group(array: jax.Array, groups: tuple[int, int]) -> jax.Array:
    """[batch, length, heads, head_dim] as [batch, length, kv_heads, heads / kv_heads, head_dim]."""
    batch, length, _, head_dim = array.shape
    return array.reshape(batch, length, *groups, head_dim)


def _scores(
    query: jax.Array, key: jax.Array, causal: bool, segments: jax.Array | None
) -> jax.Array:
    """Scaled scores, float32 [batch, kv_heads, heads / kv_heads, length, key_length]."""
    groups = (key.shape[2], query.shape[2] // key.shape[2])
    scores = jnp.einsum(
        "btkgh,bskh->bkgts", _group(query, groups), key, preferred_element_type=jnp.float32
    )
    scores *= _scale(query)
    if not causal:
        return scores
    positions = jnp.arange(key.shape[1])
    visible = positions[:, None] >= positions
    if segments is not None:
        visible = visible & _of_own_segment(segments)[:, :, None]
    return jnp.where(visible, scores, -jnp.inf)


def _of_own_segment(segments: jax.Array) -> jax.Array:
    """Which keys are in the segment of a query, bool [batch, 1, length, length]."""
    return (segments[:, :, None] == segments[:, None, :])[:, None]


# JAX gives cuDNN's log normalizer in float32, and its backward pass, only inside the closure that
# jax.vjp returns. Its leaves are told apart by identity and shape, never by their order.

_Vjp = tuple[jax.Array, list[Any], jax.tree_util.PyTreeDef, list[str]]
"""The output, the closure's leaves and structure, and what each leaf is."""


_HIDDEN = -(2.0**41)  # what JAX adds to scores that a mask hides from cuDNN


def _cudnn_vjp(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool, segments: jax.Array | None
) -> _Vjp:
    mask = None if segments is None else _of_own_segment(segments)
    attend = functools.partial(
        jax.nn.dot_product_attention, mask=mask, is_causal=causal, implementation="cudnn"
    )
    output, vjp = jax.vjp(attend, query, key, value)
    leaves, structure = jax.tree.flatten(vjp)
    batch, length, heads, _ = query.shape
    known = {id(query): "query", id(key): "key", id(value): "value", id(output): "output"}

    def role(leaf: Any) -> str:
        if id(leaf) in known:
            return known[id(leaf)]
        if leaf.size == 0:
            return "unused"  # stands for an argument that the kernel is not given
        if leaf.shape == (batch, heads, length) and leaf.dtype == jnp.float32:
            return "log_normalizer"
        if mask is not None and leaf.shape == mask.shape and leaf.dtype == query.dtype:
            return "mask"
        return f"{leaf.dtype}{list(leaf.shape)}"

    roles = [role(leaf) for leaf in leaves]
    _check_roles(
        roles, {*known.values(), "log_normalizer", *(["mask"] if segments is not None else [])}
    )
    return output, leaves, structure, roles


def _check_roles(roles: Sequence[str], expected: set[str]) -> None:
    found = {role for role in roles if role != "unused"}
    if found != expected or roles.count("log_normalizer") != 1:
        raise UserError(
            f"precision.attention=cudnn: jax {jax.__version__} keeps {sorted(found)} for the "
            f"backward pass of its cuDNN attention, not {sorted(expected)}; install a jax between "
            "0.10.2 and 0.11.2, or set precision.attention=xla"
        )


def _cudnn_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool, segments: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    output, leaves, _, roles = _cudnn_vjp(query, key, value, causal, segments)
    return output, leaves[roles.index("log_normalizer")]


def _cudnn_backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    output: jax.Array,
    log_normalizer: jax.Array,
    gradient: jax.Array,
    causal: bool,
    segments: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    closure: list[_Vjp] = []

    def trace(query: jax.Array, key: jax.Array, value: jax.Array) -> list[Any]:
        closure.append(_cudnn_vjp(query, key, value, causal, segments))
        return closure[0][1]

    # Traced, never run: only the closure's structure and the shapes of its leaves are wanted.
    shapes = jax.eval_shape(trace, query, key, value)
    _, _, structure, roles = closure[0]
    given = {
        "query": query,
        "key": key,
        "value": value,
        "output": output,
        "log_normalizer": log_normalizer,
    }
    if segments is not None:
        hidden = jnp.asarray(_HIDDEN, query.dtype)
        given["mask"] = jnp.where(_of_own_segment(segments), jnp.zeros((), query.dtype), hidden)
    leaves = [
        jnp.zeros(shape.shape, shape.dtype) if role == "unused" else given[role]
        for role, shape in zip(roles, shapes, strict=True)
    ]
    of_query, of_key, of_value = jax.tree.unflatten(structure, leaves)(gradient)
    return of_query, of_key, of_value
