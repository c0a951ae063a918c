"""The language-model loss: cross entropy that never stores logits or their gradient in float32."""

import jax
import jax.numpy as jnp

from dongwu_jax.models.chunked_loss import sum_over_chunks
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

    Args:
        hidden: [batch, length, embed].
        labels: int32 [batch, length].
        mask: float32 [batch, length], not differentiated.
        chunk_tokens: see `sum_over_chunks`.

    Returns:
        float32 scalar.
    """

    def of_chunk(
        hidden: jax.Array, head: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, None]:
        return jnp.sum(_head_losses(model, head, hidden, labels) * mask), None

    return sum_over_chunks(of_chunk, chunk_tokens, hidden, model.head(), (labels, mask))[0]


def _head_losses(model: Llama, head: jax.Array, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    return token_cross_entropy(token_logits(model, hidden, head), labels)


def token_logits(model: Llama, hidden: jax.Array, head: jax.Array) -> jax.Array:
    """Logits of hidden states; those of rows that are no tokens are as low as can be.

    Args:
        hidden: [batch, length, embed].
        head: [embed, vocab].
    """
    logits = model.logits(hidden, head)
    config = model.config
    if config.vocab_rows > config.vocab_size and not config.padded_vocab_in_softmax:
        vocabulary = jnp.arange(config.vocab_rows)
        # Still finite when divided by a temperature.
        lowest = float(jnp.finfo(logits.dtype).min) / 1000
        logits = jnp.where(vocabulary < config.vocab_size, logits, lowest)
    return logits
