"""cuDNN attention kernels and ring attention on a GPU, against float32. Skipped without one.

Run with: JAX_PLATFORMS=cuda pytest -m gpu -n 0
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dongwu_jax.models.attention_kernels import attention_backward, attention_forward
from dongwu_jax.models.ring_attention import (
    ring_attention_backward,
    ring_attention_forward,
    zigzag_order,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"),
]


def random_arrays(length, key_length, kv_heads, heads=8, head_dim=128):
    """Query, key, value and gradient of the output, rounded to bfloat16."""
    rng = np.random.default_rng(length + kv_heads)
    return tuple(
        jnp.asarray(rng.normal(size=(2, size, n, head_dim)), jnp.bfloat16)
        for size, n in (
            (length, heads),
            (key_length, kv_heads),
            (key_length, kv_heads),
            (length, heads),
        )
    )


def both_passes(query, key, value, gradient, causal, implementation):
    """Output, log normalizer, gradients of query, key and value."""
    results = attention_forward(query, key, value, causal, implementation)
    gradients = attention_backward(query, key, value, *results, gradient, causal, implementation)
    return *results, *gradients


def in_float32(*arrays, causal):
    run = functools.partial(both_passes, causal=causal, implementation="xla")
    with jax.default_matmul_precision("highest"):
        return jax.jit(run)(*(x.astype(jnp.float32) for x in arrays))


def relative_error(found, exact):
    found, exact = (np.asarray(x, np.float64) for x in (found, exact))
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


def assert_close(found, exact):
    """Output and gradients to bfloat16's rounding, the float32 log normalizer far closer."""
    assert found[1].dtype == jnp.float32
    np.testing.assert_allclose(found[1], exact[1], atol=2e-3)
    for index in (0, 2, 3, 4):
        assert found[index].dtype == jnp.bfloat16
        assert relative_error(found[index], exact[index]) < 0.01


@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize(
    ("length", "key_length", "causal"),
    [(256, 256, True), (256, 256, False), (128, 256, False), (256, 128, False)],
)
def test_cudnn_equals_float32(length, key_length, causal, kv_heads):
    arrays = random_arrays(length, key_length, kv_heads)
    run = functools.partial(both_passes, causal=causal, implementation="cudnn")
    assert_close(jax.jit(run)(*arrays), in_float32(*arrays, causal=causal))


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_cudnn_keeps_packed_samples_apart(kv_heads):
    arrays = random_arrays(512, 512, kv_heads)
    ends = jnp.asarray([[100, 101, 300], [7, 256, 500]])
    segments = 1 + jnp.sum(jnp.arange(512)[None, None] >= ends[:, :, None], axis=1)

    def both(*arrays, implementation):
        *inputs, gradient = arrays
        results = attention_forward(*inputs, True, implementation, segments)
        gradients = attention_backward(*inputs, *results, gradient, True, implementation, segments)
        return *results, *gradients

    found = jax.jit(functools.partial(both, implementation="cudnn"))(*arrays)
    with jax.default_matmul_precision("highest"):
        wide = [x.astype(jnp.float32) for x in arrays]
        exact = jax.jit(functools.partial(both, implementation="xla"))(*wide)
    assert_close(found, exact)


def test_cudnn_gradients_over_parts_of_the_keys_add_up():
    """The kernel accepts an output and a log normalizer over more keys than it is given."""
    query, key, value, gradient = random_arrays(256, 512, 2)
    output, log_normalizer, *exact = in_float32(query, key, value, gradient, causal=False)
    output = output.astype(jnp.bfloat16)

    @jax.jit
    def part(key, value):
        return attention_backward(
            query, key, value, output, log_normalizer, gradient, False, "cudnn"
        )

    parts = [part(key[:, half], value[:, half]) for half in (slice(256), slice(256, None))]
    of_query = parts[0][0].astype(jnp.float32) + parts[1][0]
    assert relative_error(of_query, exact[0]) < 0.01
    for index in (1, 2):
        joined = jnp.concatenate([part[index] for part in parts], axis=1)
        assert relative_error(joined, exact[index]) < 0.01


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_ring_of_cudnn_kernels(devices, kv_heads):
    """The devices of the ring as a batch dimension of one GPU."""
    arrays = random_arrays(1024, 1024, kv_heads)
    order = zigzag_order(1024, devices)
    split = [jnp.stack([x[:, positions] for positions in order]) for x in arrays]
    options = {"axis_name": "ring", "implementation": "cudnn"}

    def run(query, key, value, gradient):
        results = ring_attention_forward(query, key, value, **options)
        gradients = ring_attention_backward(query, key, value, *results, gradient, **options)
        return *results, *gradients

    found = jax.jit(jax.vmap(run, axis_name="ring"))(*split)
    exact = in_float32(*arrays, causal=True)
    lengths = [1, 2, 1, 1, 1]  # the axis of the sequence in each result
    split_exact = [
        jnp.stack([jnp.take(x, positions, axis=axis) for positions in order])
        for x, axis in zip(exact, lengths, strict=True)
    ]
    assert_close(found, split_exact)
