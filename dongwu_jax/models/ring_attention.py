"""Causal attention over a sequence that is split over a mesh axis: keys and values travel round.

The sequence is cut into 2C chunks for C devices and device i holds chunks i and 2C-1-i ("zigzag"),
in increasing order of position. So every device has the same work at every step: its own pair is
plain causal attention; of an earlier device's pair, both its chunks see the first chunk fully and
the second not at all; of a later device's pair, its second chunk sees both chunks fully and its
first sees nothing. No block needs a mask.

Both functions run where `axis_name` is manual, on local arrays. The C steps are unrolled, and what
is sent during a step depends on the step before and is needed by the step after, so that the
compiler can overlap it with the step's arithmetic.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.models.attention_kernels import (
    Implementation,
    attention_backward,
    attention_forward,
)

Chunks = tuple[jax.Array, jax.Array]
"""The first and the second chunk of a device's pair."""

Part = tuple[jax.Array, jax.Array]
"""Output and log normalizer over some of the keys."""


def zigzag_order(length: int, shards: int) -> np.ndarray:
    """Global positions that each device holds.

    Args:
        length: of the whole sequence.
        shards: devices that share it.

    Returns:
        int64 [shards, length // shards].

    Raises:
        UserError: the sequence does not cut into 2 * shards equal chunks.
    """
    if length % (2 * shards):
        raise UserError(
            f"data.sequence_length={length} does not cut into 2 x mesh.context = {2 * shards} "
            "equal chunks, as ring attention needs; change one of them or set "
            "sharding.context_attention=ulysses"
        )
    chunks = np.arange(length).reshape(2 * shards, -1)
    return np.concatenate([chunks[:shards], chunks[shards:][::-1]], axis=1)


def ring_attention_forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    axis_name: str,
    implementation: Implementation,
) -> tuple[jax.Array, jax.Array]:
    """Causal attention of this device's queries over the whole sequence.

    Sends key and value, in one array, C - 1 times.

    Args:
        query: [batch, length / C, heads, head_dim], in zigzag order.
        key, value: [batch, length / C, kv_heads, head_dim], likewise.
        axis_name: mesh axis of size C that the length is split over.
        implementation: kernel of one step, "cudnn" or "xla".

    Returns:
        The output in the shape and dtype of `query`, and the log normalizer float32
        [batch, heads, length / C], both over all keys.
    """
    rank, shards = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    output, log_normalizer = attention_forward(
        query, key, value, causal=True, implementation=implementation
    )
    if shards == 1:
        return output, log_normalizer
    queries = _chunks(query, axis=1)
    merged = [
        (chunk.astype(jnp.float32), normalizer)
        for chunk, normalizer in zip(
            _chunks(output, axis=1), _chunks(log_normalizer, axis=2), strict=True
        )
    ]
    keys_values = jnp.stack([key, value])
    for step in range(1, shards):
        keys_values = _send(keys_values, axis_name)  # now of device rank - step, modulo C
        # Step by step: else the compiler puts all sends and all choices by rank first, overlaps
        # nothing and keeps what they bring.
        rank, keys_values, merged = jax.lax.optimization_barrier((rank, keys_values, merged))
        inputs = (queries, _chunks(keys_values[0], axis=1), _chunks(keys_values[1], axis=1))
        merged = _forward_step(inputs, merged, rank >= step, implementation)
    outputs, normalizers = zip(*merged, strict=True)
    output = jnp.concatenate(outputs, axis=1).astype(query.dtype)
    return output, jnp.concatenate(normalizers, axis=2)


def _forward_step(
    inputs: tuple[Chunks, Chunks, Chunks],
    merged: list[Part],
    earlier: jax.Array,
    implementation: Implementation,
) -> list[Part]:
    """Merge two blocks of chunk x chunk: all that this device sees of another one's pair.

    Args:
        inputs: chunks of query, key and value.
        merged: for either chunk of queries, attention over the keys seen so far.
        earlier: bool [], whether keys and values come from an earlier device.

    Returns:
        `merged` with these keys added.
    """
    queries, keys, values = inputs
    attend = functools.partial(attention_forward, causal=False, implementation=implementation)
    fixed = attend(queries[1], keys[0], values[0])
    # The other block is (first queries, first keys), or (second, second): chosen by value, not by
    # lax.cond, which on a GPU stops the host until the device has caught up.
    chosen = [jnp.where(earlier, *chunks) for chunks in inputs]
    output, normalizer = attend(*chosen)
    for_first = output, jnp.where(earlier, normalizer, -jnp.inf)
    for_second = output, jnp.where(earlier, -jnp.inf, normalizer)
    return [_merge([merged[0], for_first]), _merge([merged[1], fixed, for_second])]


def ring_attention_backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    output: jax.Array,
    log_normalizer: jax.Array,
    gradient: jax.Array,
    axis_name: str,
    implementation: Implementation,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of `ring_attention_forward`.

    Sends key and value, in one array, C - 1 times, and their float32 gradients, which follow one
    step behind and then return home, C - 1 times.

    Args:
        query, key, value, axis_name, implementation: as given to `ring_attention_forward`.
        output, log_normalizer: as it returned them.
        gradient: of the loss with respect to `output`, same shape.

    Returns:
        Gradients of query, key and value, in their shapes and dtypes.
    """
    rank, shards = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    # Otherwise the compiler may keep what the forward pass received rather than send it again: the
    # keys and values of the whole sequence, for every layer.
    key, value, gradient = jax.lax.optimization_barrier((key, value, gradient))
    own = attention_backward(
        query, key, value, output, log_normalizer, gradient, True, implementation
    )
    if shards == 1:
        return own
    queries, outputs, gradients = (_chunks(x, axis=1) for x in (query, output, gradient))
    results = (outputs, _chunks(log_normalizer, axis=2), gradients)
    keys_values = jnp.stack([key, value])
    sums: list[jax.Array] = []  # gradients of query, and of the key and value that are here now
    for step in range(1, shards):
        keys_values = _send(keys_values, axis_name)
        rank, keys_values, *sums = jax.lax.optimization_barrier([rank, keys_values, *sums])
        inputs = (queries, _chunks(keys_values[0], axis=1), _chunks(keys_values[1], axis=1))
        added = list(_backward_step(inputs, results, rank >= step, implementation))
        sums = added if step == 1 else [sums[0] + added[0], _send(sums[1], axis_name) + added[1]]
    totals = sums[0], *_send(sums[1], axis_name)
    of_query, of_key, of_value = (
        (part.astype(jnp.float32) + total).astype(part.dtype)
        for part, total in zip(own, totals, strict=True)
    )
    return of_query, of_key, of_value


def _backward_step(
    inputs: tuple[Chunks, Chunks, Chunks],
    results: tuple[Chunks, Chunks, Chunks],
    earlier: jax.Array,
    implementation: Implementation,
) -> tuple[jax.Array, jax.Array]:
    """One step of the ring, over the same two blocks as in the forward pass.

    Args:
        inputs: chunks of query, key and value.
        results: chunks of output, log normalizer and gradient.
        earlier: bool [], whether keys and values come from an earlier device.

    Returns:
        Contributions to the gradients of query, and of key and value stacked, float32, both
        chunks joined.
    """
    queries, keys, values = inputs
    gradients = functools.partial(attention_backward, causal=False, implementation=implementation)
    fixed = gradients(queries[1], keys[0], values[0], *(chunks[1] for chunks in results))
    other = gradients(*(jnp.where(earlier, *chunks) for chunks in (*inputs, *results)))
    of_query, of_key, of_value = (x.astype(jnp.float32) for x in fixed)
    firsts = [jnp.where(earlier, x.astype(jnp.float32), 0) for x in other]
    seconds = [jnp.where(earlier, 0, x.astype(jnp.float32)) for x in other]
    of_queries = jnp.concatenate([firsts[0], of_query + seconds[0]], axis=1)
    of_keys = jnp.concatenate([of_key + firsts[1], seconds[1]], axis=1)
    of_values = jnp.concatenate([of_value + firsts[2], seconds[2]], axis=1)
    return of_queries, jnp.stack([of_keys, of_values])


def _chunks(array: jax.Array, axis: int) -> Chunks:
    if array.shape[axis] % 2:
        raise ValueError(f"ring attention: a device's length {array.shape[axis]} must be even")
    first, second = jnp.split(array, 2, axis=axis)
    return first, second


def _send(array: jax.Array, axis_name: str) -> jax.Array:
    """To the next device of the ring."""
    shards = jax.lax.axis_size(axis_name)
    return jax.lax.ppermute(array, axis_name, [(i, (i + 1) % shards) for i in range(shards)])


def _merge(parts: Sequence[Part]) -> Part:
    """Attention over all keys from attention over disjoint sets of them.

    Args:
        parts: output [batch, length, heads, head_dim] and log normalizer float32
            [batch, heads, length] of each set; -inf leaves a set out, never the first one.

    Returns:
        The same over all of them, float32.
    """
    total = functools.reduce(jnp.logaddexp, [normalizer for _, normalizer in parts])
    weights = [
        jnp.swapaxes(jnp.exp(normalizer - total), 1, 2)[..., None] for _, normalizer in parts
    ]
    weighted = [
        weight * output.astype(jnp.float32)
        for weight, (output, _) in zip(weights, parts, strict=True)
    ]
    return functools.reduce(jnp.add, weighted), total
