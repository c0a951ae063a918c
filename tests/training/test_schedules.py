"""Learning rates against closed forms."""

import math

import jax.numpy as jnp
import pytest

from dongwu_jax.config import parse_config
from dongwu_jax.training.schedules import make_schedule


def rates(steps, **schedule):
    config = parse_config(
        {
            "data": {"sequence_length": 16},
            "training": {"duration": 100, "global_batch_size": 4},
            "optimizer": {"learning_rate": 1.0},
            "schedule": schedule,
        },
        "test",
    )
    function = make_schedule(config)
    return [float(function(jnp.int32(step))) for step in steps]


def test_warmup_rises_from_zero_and_reaches_the_peak():
    assert rates([0, 5, 10], type="constant", warmup=10) == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("warmup", ["10 steps", "40 samples", "640 tokens"])
def test_units_of_warmup_mean_the_same(warmup):
    assert rates([5, 50], warmup=warmup) == rates([5, 50], warmup=10)


def test_constant_stays():
    assert rates([0, 50, 99, 500], type="constant") == [1, 1, 1, 1]


def test_linear_reaches_the_minimum_at_the_end():
    found = rates([10, 55, 100, 200], type="linear", warmup=10, min_learning_rate=0.1)
    assert found == pytest.approx([1, 0.55, 0.1, 0.1])


def test_cosine_is_half_a_cosine():
    found = rates([20, 40, 60, 100], warmup=20, min_learning_rate=0.2)
    expected = [0.2 + 0.8 * (1 + math.cos(math.pi * x)) / 2 for x in (0, 0.25, 0.5, 1)]
    assert found == pytest.approx(expected)


def test_decay_shorter_than_the_run():
    assert rates([25, 50, 90], type="linear", decay=50) == pytest.approx([0.5, 0, 0], abs=1e-7)


def test_wsd_is_stable_until_the_final_decay():
    found = rates([5, 10, 79, 80, 90, 100], type="wsd", warmup=10, decay=20)
    assert found == pytest.approx([0.5, 1, 1, 1, 0.5, 0])
    assert rates([89, 95], type="wsd") == pytest.approx([1, 0.5])
