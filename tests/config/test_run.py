"""Durations, mesh arithmetic and what must divide what."""

import pytest

from dongwu_jax.config import RunConfig, parse_config
from dongwu_jax.config.durations import Duration


@pytest.mark.parametrize(
    ("text", "samples"),
    [
        (300, 1200),
        ("300", 1200),
        ("300 steps", 1200),
        ("1_000 samples", 1000),
        ("1.5k samples", 1500),
        ("2K tokens", 20),
        ("8.2M samples", 8.2e6),
        ("16.1B tokens", 16.1e7),
        ("12B tokens", 12e7),
    ],
)
def test_durations_in_samples(text, samples):
    assert Duration.parse(text).in_samples(global_batch_size=4, sequence_length=100) == samples


def test_steps_round_up():
    assert Duration.parse("401 tokens").in_steps(global_batch_size=4, sequence_length=100) == 2
    assert Duration.parse("400 tokens").in_steps(global_batch_size=4, sequence_length=100) == 1


@pytest.mark.parametrize("value", [-1, "x", "1.5 steps", None, 2.5, True, "3 epochs"])
def test_not_a_duration(value):
    with pytest.raises(ValueError, match="duration|whole number"):
        Duration.parse(value)


def run(**sections: dict) -> RunConfig:
    return parse_config(sections, "test")


def test_data_axis_takes_what_is_left():
    config = run(mesh={"fsdp": 2, "tensor": 2})
    assert config.mesh_shape(8) == {"pipe": 1, "data": 2, "fsdp": 2, "context": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"mesh": {"tensor": 3}}, "= 3 does not divide the 8 devices;"),
        ({"mesh": {"data": 2, "tensor": 2}}, "= 4 devices, not 8;"),
        ({"mesh": {"tensor": 8}, "model": {"num_kv_heads": 4}}, "num_kv_heads=4 is not divisible"),
        ({"mesh": {"tensor": 8}, "model": {"vocab_size": 99}}, "vocab_size\\)=99 is not divisible"),
        ({"training": {"global_batch_size": 12}}, "global_batch_size=12 is not a multiple of"),
    ],
)
def test_impossible_on_eight_devices(sections, message):
    with pytest.raises(ValueError, match=message):
        run(**sections).check_devices(8)


def test_a_default_rule_may_be_written_out():
    mesh = {"context": 2, "tensor": 2}
    for default in ("tensor", ["tensor"]):
        run(mesh=mesh, sharding={"rules": {"kv_heads": default}}).check_devices(8)
    with pytest.raises(ValueError, match=r"sharding.rules.kv_heads cannot be changed where"):
        run(mesh=mesh, sharding={"rules": {"kv_heads": None}}).check_devices(8)


def test_accumulation():
    config = run(training={"global_batch_size": 64, "micro_batch_size": 2}, mesh={"tensor": 2})
    assert config.accumulation_steps(8) == 8
