"""Number formats of a step: what each option changes, and what it must leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dongwu_jax.config import overlay, parse_config
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.training.batches import BatchLayout
from dongwu_jax.training.state import StartingPoint, initial_state
from dongwu_jax.training.step import make_objective, make_train_step

SETTINGS = {
    "model": {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
    },
    "data": {"sequence_length": 32},
    "training": {"duration": 20, "global_batch_size": 16, "micro_batch_size": 2},
    "optimizer": {"learning_rate": 5e-3},
}


def losses(settings: dict, devices: int = 1, steps: int = 10) -> np.ndarray:
    """float64 [steps] of training on one batch."""
    config = parse_config(overlay(SETTINGS, settings), "test")
    sharding = make_sharding(config, jax.devices()[:devices])
    layout = BatchLayout(config, sharding)
    tokens = np.random.default_rng(0).integers(128, size=layout.shape, dtype=np.int32)
    mask = np.ones(layout.shape, np.float32)
    batch = layout.place({"tokens": tokens, "labels": np.roll(tokens, -1, -1), "loss_mask": mask})
    step = make_train_step(config, sharding, make_objective(config, sharding, "cpu"))
    state = initial_state(config, sharding, StartingPoint())
    found = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    return np.array(found)


FP8 = {"precision": {"matmul": "fp8"}}


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return losses({})


@pytest.fixture(scope="module")
def eight_bits() -> np.ndarray:
    return losses(FP8)


def test_fp8_learns_as_bfloat16_does(plain, eight_bits):
    assert abs(eight_bits[0] / plain[0] - 1) < 2e-3
    assert np.abs(eight_bits / plain - 1).max() < 0.1  # of a loss that falls from 5.2 to 2
    assert (eight_bits != plain).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [{"fsdp": 4}, {"tensor": 2}, {"pipe": 2}], ids=lambda mesh: next(iter(mesh))
)
def test_fp8_on_several_devices(mesh, eight_bits):
    """Activations are scaled where they are, so devices round otherwise than one does."""
    together = losses(overlay(FP8, {"mesh": mesh}), int(np.prod(list(mesh.values()))))
    assert np.abs(together / eight_bits - 1).max() < 0.02


def test_blocks_can_be_left_out(plain, eight_bits):
    skipped = losses({"precision": {"matmul": "fp8", "fp8_skip_first": 1}})
    assert (skipped != eight_bits).any()
    assert np.abs(skipped / plain - 1).max() < np.abs(eight_bits / plain - 1).max()


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": {"grad_accumulation_dtype": "bfloat16"}},
        {"optimizer": {"first_moment_dtype": "bfloat16"}},
    ],
    ids=lambda settings: next(iter(next(iter(settings.values())))),
)
def test_narrower_sums_change_little(plain, settings):
    found = losses(settings)
    assert np.abs(found / plain - 1).max() < 0.01
    assert (found != plain).any()


def test_the_first_moment_takes_half_the_room():
    config = parse_config(overlay(SETTINGS, {"optimizer": {"first_moment_dtype": "bfloat16"}}), "")
    state = initial_state(config, make_sharding(config, jax.devices()[:1]), StartingPoint())
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state.optimizer_state) if leaf.ndim}
    assert dtypes == {jnp.dtype("bfloat16"), jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": {"matmul": "fp8", "compute_dtype": "float32"}}, "compute_dtype=bfloat16"),
        ({"precision": {"fp8_skip_first": 1}}, "only with precision.matmul=fp8"),
        (
            {
                "precision": {"matmul": "fp8", "fp8_skip_last": 1},
                "training": {"scan_layers": True},
            },
            "set them to 0",
        ),
        (
            {"precision": {"grad_accumulation_dtype": "bfloat16"}, "mesh": {"pipe": 2}},
            "a pipeline adds up in float32",
        ),
        ({"precision": {"matmul": "fp8", "fp8_skip_first": 2}}, "no block is left"),
    ],
    ids=str,
)
def test_impossible_combinations_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        parse_config(overlay(SETTINGS, settings), "test")
