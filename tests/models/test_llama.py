"""The model against naive computations and its own invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dongwu_jax.config import ModelConfig
from dongwu_jax.models.attention import causal_attention
from dongwu_jax.models.cross_entropy import summed_next_token_losses
from dongwu_jax.models.parameters import (
    abstract_parameters,
    bind,
    initial_parameters,
    logical_axes,
    named_parameters,
    parameter_count,
    parameter_tree,
)

TINY = ModelConfig(
    vocab_size=61,
    padded_vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    max_position_embeddings=64,
)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 17))


def xla_attention(query, key, value):
    return causal_attention(query, key, value, "xla")


def loss(parameters, config=TINY, remat="none", scan_layers=False, chunk=0):
    tokens, labels = TOKENS[:, :-1], TOKENS[:, 1:]
    positions = jnp.broadcast_to(jnp.arange(16), tokens.shape)
    model = bind(config, parameters)
    hidden = model.hidden_states(model.embed(tokens), positions, xla_attention, remat, scan_layers)
    mask = jnp.ones(labels.shape) / labels.size
    return summed_next_token_losses(model, hidden, labels, mask, chunk)


@pytest.fixture(scope="module")
def parameters():
    return initial_parameters(TINY, seed=0)


@pytest.fixture(scope="module")
def reference(parameters):
    return jax.jit(jax.value_and_grad(loss))(parameters)


@pytest.mark.parametrize(
    "remat", ["none", "minimal", "qkv_attention", "attention", "full", "offload"]
)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_and_scan_change_no_gradient(parameters, reference, remat, scan_layers):
    program = jax.jit(jax.value_and_grad(lambda p: loss(p, TINY, remat, scan_layers, chunk=4)))
    value, gradients = program(parameters)
    np.testing.assert_allclose(value, reference[0], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        gradients,
        reference[1],
    )


def test_remat_recomputes_what_it_says(parameters):
    """The program that is given to the compiler repeats just the products a policy stands for."""

    def matmuls(remat):
        program = jax.jit(jax.grad(lambda p: loss(p, TINY, remat))).lower(parameters)
        return program.as_text().count("stablehlo.dot_general")

    extra = {
        policy: (matmuls(policy) - matmuls("none")) / TINY.num_layers
        for policy in ("minimal", "qkv_attention", "attention", "full")
    }
    # qkv_attention: o, gate and up. full: scores and mix, too.
    assert extra == {"minimal": 0, "qkv_attention": 3, "attention": 6, "full": 8}


def test_later_tokens_do_not_change_earlier_logits(parameters):
    def logits(tokens):
        positions = jnp.broadcast_to(jnp.arange(17), tokens.shape)
        model = bind(TINY, parameters)
        return model.logits(model.hidden_states(model.embed(tokens), positions, xla_attention))

    changed = TOKENS.copy()
    changed[:, 9] = (changed[:, 9] + 1) % 61
    before, after = logits(TOKENS), logits(changed)
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert np.abs(before[:, 9:] - after[:, 9:]).max() > 1e-3


def test_attention_is_softmax_of_scaled_products():
    rng = np.random.default_rng(1)
    query = rng.normal(size=(2, 7, 4, 8)).astype(np.float32)
    key, value = (rng.normal(size=(2, 7, 2, 8)).astype(np.float32) for _ in range(2))
    expected = np.zeros_like(query)
    for head in range(4):
        scores = np.einsum("bqh,bkh->bqk", query[:, :, head], key[:, :, head // 2]) / np.sqrt(8)
        scores = np.where(np.tril(np.ones((7, 7), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        expected[:, :, head] = weights @ value[:, :, head // 2]
    np.testing.assert_allclose(
        causal_attention(query, key, value, "xla"), expected, rtol=1e-5, atol=1e-6
    )


CHANGED = {
    "vocab_size": 60,
    "padded_vocab_size": 96,
    "padded_vocab_in_softmax": True,
    "hidden_size": 64,
    "intermediate_size": 40,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 4,
    "head_dim": 6,
    "rms_norm_eps": 1e-3,
    "rope_theta": 500.0,
    "rope_scaling": {"type": "linear", "factor": 4.0},
    "tie_word_embeddings": True,
    "qkv_bias": True,
    "initializer_range": 0.05,
}


# The first only bounds data.sequence_length and is written into exports; the second makes a weight
# that only a distilling loss uses (tests/training/test_distillation.py).
ELSEWHERE = {"max_position_embeddings", "teacher_hidden_size"}


@pytest.mark.parametrize("field", sorted({*ModelConfig.model_fields} - ELSEWHERE))
def test_no_dead_knobs(field):
    """Every field of the architecture changes the weights or the compiled program."""
    changed = ModelConfig.model_validate({**TINY.model_dump(), field: CHANGED[field]})

    def fresh_and_loss(config):
        return jax.jit(lambda: loss(initial_parameters(config, seed=0), config)).lower().as_text()

    assert fresh_and_loss(changed) != fresh_and_loss(TINY)


def test_names_axes_and_shapes_agree(parameters):
    names = named_parameters(parameters)
    axes = logical_axes(TINY)
    assert names.keys() == axes.keys()
    assert all(names[name].ndim == len(axes[name]) for name in names)
    restored = parameter_tree(names)
    assert jax.tree.structure(restored) == jax.tree.structure(parameters)


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "kv_heads", "mlp", "vocab", "count"),
    [
        (32, 4096, 32, 32, 11008, 32000, 6_738_415_616),
        (40, 5120, 40, 40, 13824, 32000, 13_015_864_320),
        (36, 8192, 64, 64, 21824, 125_696, 31_032_156_160),
        (80, 8192, 64, 8, 28672, 32000, 68_976_648_192),
        (72, 12288, 96, 96, 32768, 125_696, 133_550_518_272),
    ],
)
def test_parameter_counts_of_known_models(layers, hidden, heads, kv_heads, mlp, vocab, count):
    config = ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
    )
    assert parameter_count(abstract_parameters(config)) == count
