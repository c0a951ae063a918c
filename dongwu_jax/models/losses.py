"""The language-model loss: cross entropy that never stores logits or their gradient in float32."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dongwu_jax.models.llama import Llama


@jax.custom_vjp
def token_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] of every position.

    Statistics are float32; the gradient of the logits is made in the dtype of the logits, so that
    in bfloat16 the two matmuls of the head's backward pass run in bfloat16.

    Args:
        logits: [batch, length, vocab], any float dtype; the vocabulary may be sharded.
        labels: int32 [batch, length].

    Returns:
        float32 [batch, length].
    """
    return _cross_entropy_forward(logits, labels)[0]


def _cross_entropy_forward(
    logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    wide = logits.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(wide, axis=-1)
    # A masked sum instead of a gather: it stays local when the vocabulary is sharded.
    label_logit = jnp.sum(jnp.where(_is_label(logits, labels), wide, 0.0), axis=-1)
    return log_normalizer - label_logit, (logits, labels, log_normalizer)


def _cross_entropy_backward(
    residuals: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None]:
    logits, labels, log_normalizer = residuals
    probabilities = jnp.exp(logits.astype(jnp.float32) - log_normalizer[..., None])
    difference = probabilities - _is_label(logits, labels)
    return (difference * gradient[..., None]).astype(logits.dtype), None


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return vocabulary == labels[..., None]


token_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def next_token_losses(model: Llama, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of every position from the model's hidden states.

    Args:
        hidden: [batch, length, embed].
        labels: int32 [batch, length].

    Returns:
        float32 [batch, length].
    """
    return _head_losses(model, model.head(), hidden, labels)


def summed_next_token_losses(
    model: Llama, hidden: jax.Array, labels: jax.Array, mask: jax.Array, chunk_tokens: int = 0
) -> jax.Array:
    """The sum over all positions of cross entropy times mask.

    In chunks, gradients are made while the logits exist, so that nothing is kept or computed again;
    that of the head adds up over chunks in float32.

    Args:
        hidden: [batch, length, embed].
        labels: int32 [batch, length].
        mask: float32 [batch, length], not differentiated.
        chunk_tokens: positions whose logits exist at once, a divisor of length unless longer.
            0: all.

    Returns:
        float32 scalar.
    """
    if _in_one_piece(labels, chunk_tokens):
        return jnp.sum(next_token_losses(model, hidden, labels) * mask)

    def of_chunk(
        hidden: jax.Array, head: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> jax.Array:
        return jnp.sum(_head_losses(model, head, hidden, labels) * mask)

    return _in_chunks(of_chunk, chunk_tokens)(hidden, model.head(), labels, mask)


_ChunkLoss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def _in_chunks(of_chunk: _ChunkLoss, chunk_tokens: int) -> _ChunkLoss:
    """The sum of `of_chunk` over chunks of all arguments but the second, the head."""

    @jax.custom_vjp
    def loss(hidden: jax.Array, head: jax.Array, *targets: jax.Array) -> jax.Array:
        chunks = [_chunks(x, chunk_tokens) for x in (hidden, *targets)]
        return jnp.sum(jax.lax.map(lambda chunk: of_chunk(chunk[0], head, *chunk[1:]), chunks))

    def forward(hidden: jax.Array, head: jax.Array, *targets: jax.Array) -> tuple[jax.Array, Any]:
        differentiated = jax.value_and_grad(of_chunk, argnums=(0, 1))

        def add(totals: Any, chunk: list[jax.Array]) -> tuple[Any, jax.Array]:
            loss, (of_hidden, of_head) = differentiated(chunk[0], head, *chunk[1:])
            return (totals[0] + loss, totals[1] + of_head.astype(jnp.float32)), of_hidden

        start = jnp.zeros((), jnp.float32), jnp.zeros(head.shape, jnp.float32)
        chunks = [_chunks(x, chunk_tokens) for x in (hidden, *targets)]
        (total, of_head), of_hidden = jax.lax.scan(add, start, chunks)
        # Of the head, only the dtype is wanted: an array of nothing carries it.
        return total, (_joined(of_hidden), of_head, head[:0])

    def backward(residuals: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, None, None]:
        of_hidden, of_head, head = residuals
        of_hidden = (of_hidden.astype(jnp.float32) * gradient).astype(of_hidden.dtype)
        return of_hidden, (of_head * gradient).astype(head.dtype), None, None

    loss.defvjp(forward, backward)
    return loss


def _in_one_piece(labels: jax.Array, chunk_tokens: int) -> bool:
    return chunk_tokens == 0 or chunk_tokens >= labels.shape[1]


def _chunks(x: jax.Array, chunk_tokens: int) -> jax.Array:
    """[batch, length, ...] -> [chunks, batch, chunk_tokens, ...]."""
    return x.reshape(x.shape[0], -1, chunk_tokens, *x.shape[2:]).swapaxes(0, 1)


def _joined(chunks: jax.Array) -> jax.Array:
    """What `_chunks` cut."""
    x = chunks.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _head_losses(model: Llama, head: jax.Array, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    logits = model.logits(hidden, head)
    config = model.config
    if config.vocab_rows > config.vocab_size and not config.padded_vocab_in_softmax:
        vocabulary = jnp.arange(config.vocab_rows)
        logits = jnp.where(vocabulary < config.vocab_size, logits, jnp.finfo(logits.dtype).min)
    return token_cross_entropy(logits, labels)
