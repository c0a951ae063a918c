"""Losses over the vocabulary, a part of each sequence at a time: all logits never exist at once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# (hidden, head, targets...) of a part of the sequences -> the sum of its losses, and other sums.
ChunkLoss = Callable[..., tuple[jax.Array, Any]]


def sum_over_chunks(
    of_chunk: ChunkLoss,
    chunk_tokens: int,
    hidden: jax.Array,
    head: jax.Array,
    targets: Sequence[jax.Array],
    fixed: Sequence[jax.Array] = (),
) -> tuple[jax.Array, Any]:
    """The sum of `of_chunk(hidden, head, *targets, *fixed)` over parts of the sequences.

    In chunks, gradients are made while the logits exist, so that nothing is kept or computed again;
    that of the head adds up over chunks in float32. Only the first sum is differentiated, and only
    by `hidden` and `head`.

    Args:
        chunk_tokens: positions whose logits exist at once, a divisor of length unless longer.
            0: all.
        hidden: [batch, length, embed].
        head: [embed, vocab].
        targets: [batch, length, ...] each; cut like `hidden`.
        fixed: given to every part as they are.
    """
    if chunk_tokens == 0 or chunk_tokens >= hidden.shape[1]:
        return of_chunk(hidden, head, *targets, *fixed)
    return _in_chunks(of_chunk, chunk_tokens)(hidden, head, tuple(targets), tuple(fixed))


def _in_chunks(of_chunk: ChunkLoss, chunk_tokens: int) -> ChunkLoss:
    @jax.custom_vjp
    def loss(hidden: jax.Array, head: jax.Array, targets: Any, fixed: Any) -> tuple[jax.Array, Any]:
        chunks = _chunks(hidden, targets, chunk_tokens)
        sums = jax.lax.map(lambda chunk: of_chunk(chunk[0], head, *chunk[1:], *fixed), chunks)
        return jax.tree.map(jnp.sum, sums)

    def forward(hidden: jax.Array, head: jax.Array, targets: Any, fixed: Any) -> tuple[Any, Any]:
        differentiated = jax.value_and_grad(of_chunk, argnums=(0, 1), has_aux=True)

        def add(of_head: jax.Array, chunk: list[jax.Array]) -> tuple[jax.Array, Any]:
            sums, gradients = differentiated(chunk[0], head, *chunk[1:], *fixed)
            return of_head + gradients[1].astype(jnp.float32), (sums, gradients[0])

        start = jnp.zeros(head.shape, jnp.float32)
        of_head, (sums, of_hidden) = jax.lax.scan(
            add, start, _chunks(hidden, targets, chunk_tokens)
        )
        # Of the head, only the dtype is wanted: an array of nothing carries it.
        return jax.tree.map(jnp.sum, sums), (_joined(of_hidden), of_head, head[:0])

    def backward(residuals: Any, gradients: Any) -> tuple[jax.Array, jax.Array, None, None]:
        (of_hidden, of_head, head), gradient = residuals, gradients[0]
        of_hidden = (of_hidden.astype(jnp.float32) * gradient).astype(of_hidden.dtype)
        return of_hidden, (of_head * gradient).astype(head.dtype), None, None

    loss.defvjp(forward, backward)
    return loss


def _chunks(hidden: jax.Array, targets: Sequence[jax.Array], chunk_tokens: int) -> list[jax.Array]:
    """[batch, length, ...] each -> [chunks, batch, chunk_tokens, ...]."""
    return [
        x.reshape(x.shape[0], -1, chunk_tokens, *x.shape[2:]).swapaxes(0, 1)
        for x in (hidden, *targets)
    ]


def _joined(chunks: jax.Array) -> jax.Array:
    """What `_chunks` cut."""
    x = chunks.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])
