"""The circular schedule: who works on what, and the passes against plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from dongwu_jax.parallel import pipeline
from dongwu_jax.parallel.mesh import MANUAL_AXES, MESH_AXES, make_mesh
from dongwu_jax.parallel.sharding import LogicalSharding, local_to, resolve_rules


@given(stages=st.integers(1, 6), virtual=st.integers(1, 4), groups=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_every_micro_batch_passes_every_piece_in_order(stages, virtual, groups):
    schedule = pipeline.Schedule(stages, virtual, stages * groups)
    ticks, ranks = np.meshgrid(np.arange(schedule.ticks), np.arange(stages), indexing="ij")
    work = schedule.work(jnp.asarray(ticks), jnp.asarray(ranks))
    done = {}
    for tick, rank in np.ndindex(ticks.shape):
        if not work.idle[tick, rank]:
            piece = int(work.turn[tick, rank]) * stages + rank
            done[int(work.micro_batch[tick, rank]), piece] = tick
            assert work.enters[tick, rank] == (piece == 0)
            assert work.leaves[tick, rank] == (piece == stages * virtual - 1)
    # Each piece follows the one before by exactly one tick: what a stage sends is used at once.
    for micro_batch in range(schedule.micro_batches):
        first = done[micro_batch, 0]
        assert [done[micro_batch, piece] - first for piece in range(stages * virtual)] == list(
            range(stages * virtual)
        )
    assert len(done) == schedule.micro_batches * stages * virtual
    idle = float(work.idle.mean())
    assert idle == pytest.approx((stages - 1) / (virtual * schedule.micro_batches + stages - 1))
    assert idle == pytest.approx(schedule.bubble)


@pytest.mark.parametrize(("stages", "virtual"), [(4, 1), (2, 2), (2, 3)])
def test_passes_equal_plain_autodiff(stages, virtual):
    """A chain of tanh layers, three to a piece."""
    rng = np.random.default_rng(0)
    layers, count, width = stages * virtual * 3, 2 * stages, 6
    weights = rng.normal(size=(layers, width, width)).astype(np.float32) / 2
    inputs = rng.normal(size=(count, 1, 4, width)).astype(np.float32)
    sharding = LogicalSharding(
        make_mesh({axis: stages if axis == "pipe" else 1 for axis in MESH_AXES},
                  jax.devices()[:stages]),
        resolve_rules({}),
    )  # fmt: skip
    schedule = pipeline.Schedule(stages, virtual, count)

    def stage(layers, x):
        for weight in layers:
            x = jnp.tanh(x @ weight)
        return x

    def local(weights, inputs):
        with local_to(sharding):
            weights = weights[0]
            outputs, kept = pipeline.run_forward_keeping(stage, weights, (), inputs, schedule)
            alone = pipeline.run_forward(stage, weights, inputs, schedule)
            gradients = pipeline.run_backward(weights, kept, jnp.cos(outputs), schedule)
            return jax.lax.psum((outputs, alone, gradients[1]), "pipe"), gradients[0][None]

    # [layers] -> [stages, virtual, layers of a piece]
    pieces = weights.reshape(virtual, stages, 3, width, width).swapaxes(0, 1)
    program = jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(PartitionSpec("pipe"), PartitionSpec()),
        out_specs=(PartitionSpec(), PartitionSpec("pipe")),
        axis_names={*MANUAL_AXES},
        check_vma=False,
    )
    (outputs, alone, of_inputs), of_weights = jax.jit(program)(pieces, inputs)

    def plain(weights, inputs):
        return jnp.sum(jnp.sin(stage(list(weights), inputs)))

    expected = jax.grad(plain, argnums=(0, 1))(weights, inputs)
    np.testing.assert_allclose(outputs, stage(list(weights), inputs), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs, alone)
    of_weights = of_weights.swapaxes(0, 1).reshape(weights.shape)
    np.testing.assert_allclose(of_weights, expected[0], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(of_inputs, expected[1], rtol=1e-4, atol=2e-5)
