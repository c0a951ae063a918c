"""Ring attention over virtual devices against attention of the whole sequence on one device."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import Mesh, PartitionSpec

from dongwu_jax.errors import UserError
from dongwu_jax.models.attention_kernels import attention_forward
from dongwu_jax.models.ring_attention import (
    ring_attention_backward,
    ring_attention_forward,
    zigzag_order,
)

SEND = r" collective-permute(-start)?\("
QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
BATCH, LENGTH, HEADS, HEAD_DIM = 2, 32, 4, 8


def make_mesh(context, tensor=1):
    devices = np.array(jax.devices()[: context * tensor]).reshape(context, tensor)
    return Mesh(devices, ("context", "tensor"))


def local_functions(mesh, implementation):
    """Forward and backward in a fully manual shard_map."""
    array = PartitionSpec(None, "context", "tensor", None)
    statistics = PartitionSpec(None, "tensor", "context")

    def on_mesh(function, in_specs, out_specs):
        local = functools.partial(function, axis_name="context", implementation=implementation)
        return jax.shard_map(
            local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    forward = on_mesh(ring_attention_forward, (array,) * 3, (array, statistics))
    backward = on_mesh(ring_attention_backward, (array,) * 4 + (statistics, array), (array,) * 3)
    return forward, backward


def ring_attention(mesh, implementation="xla"):
    """As a training step uses it: custom VJP outside, shard_map inside."""
    forward, backward = local_functions(mesh, implementation)

    @jax.custom_vjp
    def attend(query, key, value):
        return forward(query, key, value)[0]

    def remember(query, key, value):
        output, log_normalizer = forward(query, key, value)
        return output, (query, key, value, output, log_normalizer)

    attend.defvjp(remember, lambda residuals, gradient: backward(*residuals, gradient))
    return attend


def output_and_gradients(attend, query, key, value, gradient):
    def run(query, key, value):
        output, vjp = jax.vjp(attend, query, key, value)
        return output, *vjp(gradient)

    return jax.jit(run, compiler_options=QUICK_COMPILE)(query, key, value)


def random_arrays(kv_heads, length=LENGTH, heads=HEADS):
    """Query, key, value, gradient of the output, of the whole sequence in its natural order."""
    rng = np.random.default_rng(length + kv_heads)
    return tuple(
        rng.normal(size=(BATCH, length, n, HEAD_DIM)).astype(np.float32)
        for n in (heads, kv_heads, kv_heads, heads)
    )


def one_device(query, key, value, gradient):
    """Output and gradients by JAX's own attention and autodiff."""
    attend = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")
    return output_and_gradients(attend, query, key, value, gradient)


def assert_ring_equals_one_device(mesh, arrays, atol=1e-5):
    order = zigzag_order(arrays[0].shape[1], mesh.shape["context"]).ravel()
    found = output_and_gradients(ring_attention(mesh), *(x[:, order] for x in arrays))
    for mine, expected in zip(found, one_device(*arrays), strict=True):
        natural = np.empty_like(expected)
        natural[:, order] = mine
        np.testing.assert_allclose(natural, expected, atol=atol)


@pytest.mark.parametrize(
    ("context", "kv_heads"), [(1, 2), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (8, 1), (8, 2)]
)
def test_equals_one_device(context, kv_heads):
    assert_ring_equals_one_device(make_mesh(context), random_arrays(kv_heads))


def test_odd_number_of_devices_and_chunks_of_odd_length():
    assert_ring_equals_one_device(make_mesh(3), random_arrays(2, length=42))


@pytest.mark.parametrize(("context", "tensor"), [(2, 2), (4, 2), (2, 4)])
def test_heads_split_over_tensor(context, tensor):
    arrays = random_arrays(kv_heads=4, heads=8)
    assert_ring_equals_one_device(make_mesh(context, tensor), arrays)


def test_inside_a_program_that_leaves_tensor_to_the_compiler():
    """Manual over `context` outside; over `tensor` too in a shard_map of its own inside."""
    mesh, arrays = make_mesh(2, 2), random_arrays(2)
    order = zigzag_order(LENGTH, 2).ravel()
    ring = functools.partial(ring_attention_forward, axis_name="context", implementation="xla")
    heads, statistics = PartitionSpec(None, None, "tensor"), PartitionSpec(None, "tensor")

    def outer(query, key, value):
        inner = jax.shard_map(
            ring,
            in_specs=(heads,) * 3,
            out_specs=(heads, statistics),
            axis_names={"tensor"},
            check_vma=False,
        )
        return inner(query, key, value)[0]

    length = PartitionSpec(None, "context")
    on_mesh = jax.shard_map(
        outer, mesh=mesh, in_specs=length, out_specs=length, axis_names={"context"}, check_vma=False
    )
    found = jax.jit(on_mesh)(*(x[:, order] for x in arrays[:3]))
    expected = one_device(*arrays)[0]
    np.testing.assert_allclose(found, expected[:, order], atol=1e-5)


def test_log_normalizer_is_of_all_keys():
    query, key, value, _ = random_arrays(2)
    order = zigzag_order(LENGTH, 4)
    _, expected = attention_forward(query, key, value, True, "xla")
    shards = (np.stack([x[:, positions] for positions in order]) for x in (query, key, value))
    ring = functools.partial(ring_attention_forward, axis_name="ring", implementation="xla")
    _, found = jax.jit(jax.vmap(ring, axis_name="ring"), compiler_options=QUICK_COMPILE)(*shards)
    for mine, positions in zip(found, order, strict=True):
        np.testing.assert_allclose(mine, expected[:, :, positions], atol=1e-5)


def test_scores_of_very_different_size_merge():
    """One chunk's normalizer may exceed another's by far more than exp can hold."""
    query, key, value, gradient = random_arrays(2)
    key[:, : LENGTH // 2] *= 40
    assert_ring_equals_one_device(make_mesh(4), (query, key, value, gradient), atol=1e-3)


@pytest.mark.parametrize("context", [2, 3, 4])
def test_what_is_sent(context):
    """C - 1 sends of keys and values forward; as many backward, and as many of their gradients."""
    query, key, value, gradient = random_arrays(2, length=12 * context)
    length, local = query.shape[1], query.shape[1] // context
    log_normalizer = np.zeros((BATCH, HEADS, length), np.float32)
    keys_values = f"f32[2,{BATCH},{local},2,{HEAD_DIM}]"

    def sends(function, *arguments):
        program = jax.jit(function).lower(*arguments).compile().as_text()
        assert not re.search("all-gather|all-to-all|all-reduce", program)
        lines = [line for line in program.splitlines() if re.search(SEND, line)]
        assert all(keys_values in line for line in lines)
        return len(lines)

    forward, backward = local_functions(make_mesh(context), "xla")
    assert sends(forward, query, key, value) == context - 1
    arguments = (query, key, value, query, log_normalizer, gradient)
    assert sends(backward, *arguments) == 2 * (context - 1)


@pytest.mark.parametrize("context", [2, 4, 8])
def test_every_device_computes_only_what_is_visible(context):
    """One causal block of two chunks, then two blocks of chunk x chunk a step, on every device."""
    chunk = LENGTH // (2 * context)
    blocks = []

    def record(query, key, value, causal, implementation):
        blocks.append((query.shape[1], key.shape[1], causal))
        return attention_forward(query, key, value, causal, implementation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dongwu_jax.models.ring_attention.attention_forward", record)
        jax.eval_shape(ring_attention(make_mesh(context)), *random_arrays(2)[:3])
    square = (chunk, chunk, False)
    assert blocks == [(2 * chunk, 2 * chunk, True)] + [square] * (2 * (context - 1))


def test_bfloat16_accumulates_in_float32():
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in random_arrays(2, length=256)]
    order = zigzag_order(256, 4).ravel()
    found = output_and_gradients(ring_attention(make_mesh(4)), *(x[:, order] for x in arrays))
    exact = one_device(*(x.astype(jnp.float32) for x in arrays))
    for mine, expected in zip(found, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(mine, np.float32) - expected[:, order])
        assert error < 0.01 * np.linalg.norm(expected)


@pytest.mark.parametrize(("context", "tensor"), [(4, 1), (2, 2)])
def test_cudnn_kernels_in_the_lowered_program(context, tensor, monkeypatch):
    """The forward rule's kernels run once, the backward rule runs no forward kernel."""
    version = types.SimpleNamespace(cudnn_get_version=lambda: 91300)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", version)
    attend = ring_attention(make_mesh(context, tensor), "cudnn")
    query, key = (
        jax.ShapeDtypeStruct((BATCH, 128, heads, 64), jnp.bfloat16) for heads in (HEADS, 2)
    )

    def both(query, key, value):
        output, vjp = jax.vjp(attend, query, key, value)
        return vjp(output)

    lowered = jax.jit(both).trace(query, key, key).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    backward = text.count("@__cudnn$fmhaSoftmaxBackward")
    assert backward == 2 * context - 1
    assert text.count("@__cudnn$fmhaSoftmax") - backward == 2 * context - 1


@pytest.mark.parametrize(("length", "shards"), [(16, 1), (16, 2), (48, 3), (64, 8)])
def test_zigzag_order(length, shards):
    order = zigzag_order(length, shards)
    chunk = length // (2 * shards)
    assert order.shape == (shards, length // shards)
    assert sorted(order.ravel()) == list(range(length))
    for rank, positions in enumerate(order):
        assert list(positions) == sorted(positions)
        found = {position // chunk for position in positions}
        assert found == {rank, 2 * shards - 1 - rank}
        # causal attention's work: each position's number of visible keys
        assert np.sum(positions + 1) == length * (length + 1) // (2 * shards)


def test_zigzag_order_needs_equal_chunks():
    with pytest.raises(UserError, match=r"sequence_length=36 .* 2 x mesh.context = 8"):
        zigzag_order(36, 4)


def test_odd_local_length():
    query, key, value = (x[:, :7] for x in random_arrays(2)[:3])
    stacked = [np.stack([x, x]) for x in (query, key, value)]
    ring = functools.partial(ring_attention_forward, axis_name="ring", implementation="xla")
    with pytest.raises(ValueError, match="length 7 must be even"):
        jax.vmap(ring, axis_name="ring")(*stacked)
