"""Attention kernels against float64 numpy, and what of cuDNN can be seen without a GPU."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from dongwu_jax.errors import UserError
from dongwu_jax.models import attention_kernels
from dongwu_jax.models.attention_kernels import attention_backward, attention_forward

HEAD_DIM = 8


def random_arrays(length, key_length, heads, kv_heads, seed=0, batch=2):
    """Query, key, value and the gradient of the output."""
    rng = np.random.default_rng(seed)
    of_query, of_key = (batch, length, heads, HEAD_DIM), (batch, key_length, kv_heads, HEAD_DIM)
    return tuple(
        rng.normal(size=shape).astype(np.float32) for shape in (of_query, of_key, of_key, of_query)
    )


def softmax_attention(query, key, value, causal):
    """By definition, in float64: output, log normalizer [batch, heads, length], weights."""
    group = query.shape[2] // key.shape[2]
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    key, value = (np.repeat(x, group, axis=2) for x in (key, value))
    scores = np.einsum("bqnh,bknh->bnqk", query, key) / np.sqrt(query.shape[3])
    if causal:
        scores[..., np.triu(np.ones(scores.shape[2:], bool), 1)] = -np.inf
    log_normalizer = np.log(np.sum(np.exp(scores), axis=-1))
    weights = np.exp(scores - log_normalizer[..., None])
    return np.einsum("bnqk,bknh->bqnh", weights, value), log_normalizer, weights


def softmax_gradients(query, key, value, gradient, causal):
    """Through the Jacobian of softmax, in float64."""
    kv_heads, group = key.shape[2], query.shape[2] // key.shape[2]
    _, _, weights = softmax_attention(query, key, value, causal)
    keys, values = (np.repeat(x.astype(np.float64), group, axis=2) for x in (key, value))
    of_weights = np.einsum("bqnh,bknh->bnqk", gradient, values)
    jacobian = np.einsum("bnqk,kj->bnqkj", weights, np.eye(key.shape[1])) - np.einsum(
        "bnqk,bnqj->bnqkj", weights, weights
    )
    of_scores = np.einsum("bnqk,bnqkj->bnqj", of_weights, jacobian) / np.sqrt(query.shape[3])
    of_key = np.einsum("bnqk,bqnh->bknh", of_scores, query)
    of_value = np.einsum("bnqk,bqnh->bknh", weights, gradient)
    summed = (
        x.reshape(*x.shape[:2], kv_heads, group, x.shape[3]).sum(axis=3) for x in (of_key, of_value)
    )
    return np.einsum("bnqk,bknh->bqnh", of_scores, keys), *summed


CASES = [
    pytest.param(causal, length, key_length, kv_heads, id=f"{name}-{heads_name}")
    for causal, length, key_length, name in [
        (True, 12, 12, "causal"),
        (False, 12, 12, "full"),
        (False, 6, 12, "more_keys"),
        (False, 12, 6, "fewer_keys"),
    ]
    for kv_heads, heads_name in [(4, "mha"), (2, "gqa"), (1, "mqa")]
]


@pytest.mark.parametrize(("causal", "length", "key_length", "kv_heads"), CASES)
def test_output_and_log_normalizer(causal, length, key_length, kv_heads):
    query, key, value, _ = random_arrays(length, key_length, 4, kv_heads)
    output, log_normalizer = attention_forward(query, key, value, causal, "xla")
    expected, expected_normalizer, _ = softmax_attention(query, key, value, causal)
    assert log_normalizer.dtype == jnp.float32
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_allclose(log_normalizer, expected_normalizer, atol=1e-6)


@pytest.mark.parametrize(("causal", "length", "key_length", "kv_heads"), CASES)
def test_gradients(causal, length, key_length, kv_heads):
    query, key, value, gradient = random_arrays(length, key_length, 4, kv_heads)
    results = attention_forward(query, key, value, causal, "xla")
    found = attention_backward(query, key, value, *results, gradient, causal, "xla")
    expected = softmax_gradients(query, key, value, gradient, causal)
    for mine, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, exact, atol=5e-6)


def test_gradients_over_parts_of_the_keys_add_up():
    query, key, value, gradient = random_arrays(12, 20, 4, 2)
    results = attention_forward(query, key, value, False, "xla")
    parts = [
        attention_backward(query, key[:, a:b], value[:, a:b], *results, gradient, False, "xla")
        for a, b in ((0, 8), (8, 20))
    ]
    of_query, of_key, of_value = softmax_gradients(query, key, value, gradient, False)
    np.testing.assert_allclose(parts[0][0] + parts[1][0], of_query, atol=5e-6)
    for index, exact in ((1, of_key), (2, of_value)):
        joined = np.concatenate([part[index] for part in parts], axis=1)
        np.testing.assert_allclose(joined, exact, atol=5e-6)


def test_large_scores_do_not_overflow():
    query, key, value, gradient = random_arrays(12, 12, 4, 2)
    results = attention_forward(100 * query, 100 * key, value, True, "xla")
    gradients = attention_backward(100 * query, 100 * key, value, *results, gradient, True, "xla")
    assert all(np.isfinite(x).all() for x in (*results, *gradients))


def test_bfloat16_keeps_float32_statistics():
    arrays = random_arrays(64, 64, 4, 2)
    query, key, value, gradient = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
    output, log_normalizer = attention_forward(query, key, value, True, "xla")
    gradients = attention_backward(query, key, value, output, log_normalizer, gradient, True, "xla")
    assert {x.dtype for x in (output, *gradients)} == {jnp.dtype("bfloat16")}
    rounded = [np.asarray(x, np.float32) for x in (query, key, value, gradient)]
    expected, expected_normalizer, _ = softmax_attention(*rounded[:3], True)
    np.testing.assert_allclose(log_normalizer, expected_normalizer, atol=1e-5)
    np.testing.assert_allclose(output.astype(jnp.float32), expected, atol=0.03)
    for mine, exact in zip(gradients, softmax_gradients(*rounded, True), strict=True):
        mine = np.asarray(mine, np.float64)
        assert np.linalg.norm(mine - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("shapes", "causal", "message"),
    [
        (((2, 8, 4, 8), (2, 6, 2, 8)), True, "8 queries over 6 keys"),
        (((2, 8, 4, 8), (2, 8, 3, 8)), False, "4 heads are not a multiple of 3"),
        (((2, 8, 4, 8), (1, 8, 2, 8)), False, "must agree"),
        (((2, 8, 4, 8), (2, 8, 2, 16)), False, "must agree"),
    ],
)
def test_wrong_shapes(shapes, causal, message):
    query, key = (jnp.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        attention_forward(query, key, key, causal, "xla")


@pytest.fixture
def cudnn_lowering(monkeypatch):
    """Let JAX trace and lower cuDNN attention on a machine without it."""
    version = types.SimpleNamespace(cudnn_get_version=lambda: 91300)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", version)


def bfloat16(*shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]


def cuda_calls(function, *arguments):
    """How many forward and backward kernels the lowered program calls."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    backward = text.count("@__cudnn$fmhaSoftmaxBackward")
    return text.count("@__cudnn$fmhaSoftmax") - backward, backward


@pytest.mark.usefixtures("cudnn_lowering")
@pytest.mark.parametrize(
    ("key_length", "causal"), [(64, True), (64, False), (32, False), (128, False)]
)
def test_cudnn_runs_each_kernel_once(key_length, causal):
    query, key = bfloat16((2, 64, 4, 64), (2, key_length, 2, 64))

    def forward(query, key, value):
        return attention_forward(query, key, value, causal, "cudnn")

    output, log_normalizer = jax.eval_shape(forward, query, key, key)
    assert (output.shape, output.dtype) == (query.shape, query.dtype)
    assert (log_normalizer.shape, log_normalizer.dtype) == ((2, 4, 64), jnp.float32)
    assert cuda_calls(forward, query, key, key) == (1, 0)

    def backward(*arrays):
        return attention_backward(*arrays, causal, "cudnn")

    arguments = (query, key, key, output, log_normalizer, query)
    gradients = jax.eval_shape(backward, *arguments)
    assert [(x.shape, x.dtype) for x in gradients] == [
        (x.shape, x.dtype) for x in (query, key, key)
    ]
    assert cuda_calls(backward, *arguments) == (0, 1)


@pytest.mark.usefixtures("cudnn_lowering")
def test_cudnn_takes_one_array_as_key_and_value():
    query, key = bfloat16((2, 64, 4, 64), (2, 64, 2, 64))

    def forward(query, key):
        return attention_forward(query, key, key, True, "cudnn")

    def backward(query, key, output, log_normalizer):
        return attention_backward(query, key, key, output, log_normalizer, query, True, "cudnn")

    results = jax.eval_shape(forward, query, key)
    assert cuda_calls(forward, query, key) == (1, 0)
    assert cuda_calls(backward, query, key, *results) == (0, 1)


@pytest.mark.usefixtures("cudnn_lowering")
def test_cudnn_backward_reads_the_given_output_and_normalizer(monkeypatch):
    """The kernel's operands are the caller's, so that they may cover more keys."""
    query, key = bfloat16((2, 64, 4, 64), (2, 64, 2, 64))
    normalizer = jax.ShapeDtypeStruct((2, 4, 64), jnp.float32)

    def backward(*arrays):
        return attention_backward(*arrays, True, "cudnn")

    jaxpr = jax.make_jaxpr(backward)(query, key, key, query, normalizer, query)
    (call,) = [e for e in jaxpr.eqns if "dot_product_attention_bwd" in e.primitive.name]
    used = {id(variable) for variable in call.invars}
    assert all(id(variable) in used for variable in jaxpr.jaxpr.invars)


@pytest.mark.usefixtures("cudnn_lowering")
@pytest.mark.parametrize("change", ["two_statistics", "no_output", "other_dtype"])
def test_other_residuals_are_an_error(change, monkeypatch):
    true_vjp = jax.vjp

    def changed_vjp(*arguments):
        output, vjp = true_vjp(*arguments)
        leaves, structure = jax.tree.flatten(vjp)
        is_normalizer = [leaf.ndim == 3 for leaf in leaves]
        if change == "no_output":
            leaves = [x + 1 if x is output else x for x in leaves]
        elif change == "other_dtype":
            leaves = [
                x.astype(jnp.bfloat16) if is_it else x
                for x, is_it in zip(leaves, is_normalizer, strict=True)
            ]
        else:
            leaves = [leaves[is_normalizer.index(True)] if x.size == 0 else x for x in leaves]
        return output, jax.tree.unflatten(structure, leaves)

    monkeypatch.setattr(attention_kernels.jax, "vjp", changed_vjp)
    query, key = bfloat16((2, 64, 4, 64), (2, 64, 2, 64))
    with pytest.raises(UserError, match=f"jax {jax.__version__} keeps .*attention=xla"):
        jax.eval_shape(lambda q, k, v: attention_forward(q, k, v, True, "cudnn"), query, key, key)
