"""The language-model loss: cross entropy that never stores logits or their gradient in float32."""

from functools import partial

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


def next_token_losses(
    model: Llama, hidden: jax.Array, labels: jax.Array, chunk_tokens: int = 0
) -> jax.Array:
    """Cross entropy of every position from the model's hidden states.

    Args:
        hidden: [batch, length, embed].
        labels: int32 [batch, length].
        chunk_tokens: positions whose logits exist at once, a divisor of length unless longer;
            they are computed again in the backward pass. 0: all at once, kept.

    Returns:
        float32 [batch, length].
    """
    losses = partial(_head_losses, model, model.head())
    batch, length = labels.shape
    if chunk_tokens == 0 or chunk_tokens >= length:
        return losses(hidden, labels)
    chunks = (
        hidden.reshape(batch, -1, chunk_tokens, hidden.shape[-1]).swapaxes(0, 1),
        labels.reshape(batch, -1, chunk_tokens).swapaxes(0, 1),
    )
    step = jax.checkpoint(losses, prevent_cse=False)
    _, per_chunk = jax.lax.scan(lambda carry, chunk: (carry, step(*chunk)), None, chunks)
    return per_chunk.swapaxes(0, 1).reshape(batch, length)


def _head_losses(model: Llama, head: jax.Array, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    logits = model.logits(hidden, head)
    config = model.config
    if config.vocab_rows > config.vocab_size and not config.padded_vocab_in_softmax:
        vocabulary = jnp.arange(config.vocab_rows)
        logits = jnp.where(vocabulary < config.vocab_size, logits, jnp.finfo(logits.dtype).min)
    return token_cross_entropy(logits, labels)
