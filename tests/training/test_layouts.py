"""The same run on other meshes: equal loss curves, equal weights, checkpoints that move."""

import json

import jax
import numpy as np
import pytest
from runs import run_config

from dongwu_jax.errors import UserError
from dongwu_jax.models.parameters import named_parameters
from dongwu_jax.training.trainer import Trainer

LAYOUTS = {
    "data8": {"data": 8},
    "fsdp8": {"fsdp": 8},
    "tensor4_data2": {"tensor": 4, "data": 2},
    "tensor2_fsdp2_data2": {"tensor": 2, "fsdp": 2, "data": 2},
}


def train(folder, mesh, **sections):
    """Loss and gradient norm of every step, and the final weights."""
    state = Trainer(run_config(folder, mesh=mesh, **sections)).run()
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    curve = [(r["loss"], r["gradient_norm"]) for r in records if "loss" in r]
    return np.array(curve), jax.device_get(named_parameters(state.parameters))


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    devices = jax.devices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: devices()[:1])
        return train(tmp_path_factory.mktemp("one"), {})


@pytest.mark.parametrize("name", LAYOUTS)
def test_twenty_steps_equal_one_device(name, one_device, tmp_path):
    sections = {"training": {"micro_batch_size": 1}}
    curve, parameters = train(tmp_path, LAYOUTS[name], **sections)
    assert len(curve) == 20
    assert one_device[0][-1, 0] < one_device[0][0, 0] - 0.5  # it learns; equality says something
    np.testing.assert_allclose(curve, one_device[0], rtol=1e-4)
    for parameter, value in parameters.items():
        np.testing.assert_allclose(value, one_device[1][parameter], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_goes_on_in_another_layout(one_device, tmp_path):
    Trainer(run_config(tmp_path, mesh={"fsdp": 4, "data": 2})).run(stop_after=10)
    curve, _ = train(tmp_path, {"tensor": 2, "fsdp": 2, "data": 2})
    np.testing.assert_allclose(curve, one_device[0], rtol=1e-4)


def test_weights_are_really_sharded(tmp_path):
    trainer = Trainer(run_config(tmp_path, mesh={"tensor": 2, "fsdp": 4}))
    state = trainer.resume_or_start()
    for leaf in (state.parameters, state.optimizer_state[0].mu):
        up_proj = leaf["layers"][0]["mlp"]["up_proj"]
        assert up_proj.shape == (32, 64)
        assert up_proj.addressable_shards[0].data.shape == (8, 32)


def test_few_key_value_heads_are_replicated_by_a_rule(one_device, tmp_path):
    sections = {"sharding": {"rules": {"kv_heads": None}}, "model": {"num_kv_heads": 2}}
    with pytest.raises(UserError, match="sharding.rules.kv_heads=null"):
        Trainer(run_config(tmp_path, mesh={"tensor": 4}, model={"num_kv_heads": 2}))
    curve, _ = train(tmp_path, {"tensor": 4, "data": 2}, **sections)
    assert curve[-1, 0] < curve[0, 0] - 0.5
