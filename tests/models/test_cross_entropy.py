"""Cross entropy against optax, and the padding switch against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dongwu_jax.config import ModelConfig
from dongwu_jax.models.cross_entropy import (
    next_token_losses,
    summed_next_token_losses,
    token_cross_entropy,
)
from dongwu_jax.models.parameters import bind, initial_parameters

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(2, 5, 37)).astype(np.float32)
LABELS = RNG.integers(0, 37, (2, 5))
WEIGHTS = RNG.normal(size=(2, 5)).astype(np.float32)


def ours(logits):
    return jnp.sum(token_cross_entropy(logits, LABELS) * WEIGHTS)


def theirs(logits):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
    return jnp.sum(losses * WEIGHTS)


def test_value_and_gradient_equal_optax():
    for mine, reference in zip(
        jax.value_and_grad(ours)(LOGITS), jax.value_and_grad(theirs)(LOGITS), strict=True
    ):
        np.testing.assert_allclose(mine, reference, rtol=1e-5, atol=1e-6)


def test_bfloat16_logits_get_a_bfloat16_gradient():
    gradient = jax.grad(ours)(jnp.asarray(LOGITS, jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    reference = jax.grad(theirs)(LOGITS)
    np.testing.assert_allclose(gradient.astype(jnp.float32), reference, atol=0.02)


@pytest.mark.parametrize("in_softmax", [False, True])
def test_padding_rows_count_only_when_asked(in_softmax):
    config = ModelConfig(
        vocab_size=37,
        padded_vocab_size=40,
        padded_vocab_in_softmax=in_softmax,
        hidden_size=16,
        intermediate_size=16,
        num_layers=1,
        num_heads=2,
    )
    model = bind(config, initial_parameters(config, seed=0))
    hidden = jnp.asarray(RNG.normal(scale=20, size=(2, 5, 16)), jnp.float32)
    logits = model.logits(hidden)
    rows = 40 if in_softmax else 37
    expected = optax.softmax_cross_entropy_with_integer_labels(logits[..., :rows], LABELS)
    np.testing.assert_allclose(next_token_losses(model, hidden, LABELS), expected, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_in_chunks_the_sum_and_its_gradients_are_those_of_whole_sequences(tied):
    config = ModelConfig(
        vocab_size=37,
        padded_vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_layers=1,
        num_heads=2,
        tie_word_embeddings=tied,
    )
    parameters = initial_parameters(config, seed=0)
    hidden = jnp.asarray(RNG.normal(size=(2, 6, 16)), jnp.float32)
    labels = jnp.asarray(RNG.integers(0, 37, (2, 6)))
    mask = jnp.asarray([[1, 0, 1, 1, 0, 2], [0, 0, 0, 1, 1, 1]], jnp.float32)

    def objective(parameters, hidden, chunk_tokens):
        model = bind(config, parameters)
        return 0.1 * summed_next_token_losses(model, hidden, labels, mask, chunk_tokens)

    losses = next_token_losses(bind(config, parameters), hidden, labels)
    differentiated = jax.value_and_grad(objective, argnums=(0, 1))
    expected = differentiated(parameters, hidden, 0)
    np.testing.assert_allclose(expected[0], 0.1 * jnp.sum(losses * mask), rtol=1e-6)
    for chunk_tokens in (2, 3):
        found = differentiated(parameters, hidden, chunk_tokens)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected
        )
