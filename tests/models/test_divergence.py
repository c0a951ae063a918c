"""Divergences against their definitions, differentiated by JAX, and against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dongwu_jax.models.divergence import token_divergence, top_divergence

RNG = np.random.default_rng(0)
VOCAB = 37
LOGITS = RNG.normal(scale=3, size=(2, 5, VOCAB)).astype(np.float32)
TEACHER = RNG.normal(scale=3, size=(2, 5, VOCAB)).astype(np.float32)
WEIGHTS = RNG.normal(size=(2, 5)).astype(np.float32)
CASES = [(1.0, "forward_kl"), (2.0, "forward_kl"), (1.0, "reverse_kl"), (0.5, "reverse_kl")]


def definition(logits, temperature, direction):
    student = jax.nn.log_softmax(logits / temperature)
    teacher = jax.nn.log_softmax(TEACHER / temperature)
    first, second = (teacher, student) if direction == "forward_kl" else (student, teacher)
    return jnp.sum(jnp.exp(first) * (first - second), axis=-1)


def weighted(function):
    return lambda logits: jnp.sum(function(logits) * WEIGHTS)


@pytest.mark.parametrize(("temperature", "direction"), CASES)
def test_value_and_gradient_are_those_of_the_definition(temperature, direction):
    def ours(logits):
        return token_divergence(logits, TEACHER, temperature, direction)

    def theirs(logits):
        return definition(logits, temperature, direction)

    found, expected = (jax.value_and_grad(weighted(f))(LOGITS) for f in (ours, theirs))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=2e-5)


def test_forward_kl_is_torch_s():
    logs = [torch.log_softmax(torch.from_numpy(x), -1) for x in (LOGITS, TEACHER)]
    expected = torch.nn.functional.kl_div(*logs, reduction="none", log_target=True).sum(-1)
    found = token_divergence(jnp.asarray(LOGITS), jnp.asarray(TEACHER), 1.0, "forward_kl")
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("direction", ["forward_kl", "reverse_kl"])
def test_a_model_does_not_diverge_from_itself(direction):
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    found, gradient = jax.value_and_grad(
        weighted(lambda x: token_divergence(x, logits, 1.0, direction))
    )(logits)
    assert gradient.dtype == jnp.bfloat16
    assert abs(float(found)) < 1e-5
    assert float(jnp.abs(gradient.astype(jnp.float32)).max()) < 1e-6


def with_tail(ids):
    """The definition over the tokens `ids` and all others together."""
    wide = np.exp(TEACHER.astype(np.float64))
    teacher = wide / wide.sum(-1, keepdims=True)

    def outcomes(probabilities):
        top = jnp.take_along_axis(probabilities, ids, axis=-1)
        return jnp.concatenate([top, 1 - top.sum(-1, keepdims=True)], axis=-1)

    top = np.take_along_axis(teacher, ids, axis=-1)
    log_probabilities = np.log(np.concatenate([top, 1 - top.sum(-1, keepdims=True)], axis=-1))

    def divergence(logits):
        q = outcomes(jax.nn.softmax(logits))
        return jnp.sum(np.exp(log_probabilities) * (log_probabilities - jnp.log(q)), axis=-1)

    return divergence, log_probabilities


@pytest.mark.parametrize("k", [1, 5, VOCAB - 1])
def test_top_tokens_with_a_tail_are_the_definition(k):
    ids = np.argsort(-TEACHER, axis=-1)[..., :k]
    theirs, log_probabilities = with_tail(ids)

    def ours(logits):
        return top_divergence(logits, jnp.asarray(ids), log_probabilities)

    found, expected = (jax.value_and_grad(weighted(f))(jnp.asarray(LOGITS)) for f in (ours, theirs))
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-4)
    np.testing.assert_allclose(found[1], expected[1], atol=2e-4)


def test_all_tokens_but_one_and_a_tail_are_the_whole_divergence():
    ids = np.argsort(-TEACHER, axis=-1)[..., :-1]
    found = top_divergence(jnp.asarray(LOGITS), jnp.asarray(ids), with_tail(ids)[1])
    np.testing.assert_allclose(found, definition(LOGITS, 1.0, "forward_kl"), rtol=1e-3)


def test_it_never_exceeds_the_whole_divergence():
    """To join outcomes loses information, never adds any."""
    for k in (1, 4, 16):
        ids = np.argsort(-TEACHER, axis=-1)[..., :k]
        found = top_divergence(jnp.asarray(LOGITS), jnp.asarray(ids), with_tail(ids)[1])
        assert (np.asarray(found) <= definition(LOGITS, 1.0, "forward_kl") + 1e-4).all()
