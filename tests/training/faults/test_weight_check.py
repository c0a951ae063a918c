"""Replicas whose weights differ by a bit, wherever it is, are found and named."""

import jax
import numpy as np
import pytest
from runs import run_config

from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.training.faults.bad_steps import HardwareFaultError
from dongwu_jax.training.faults.weight_check import WeightCheck
from dongwu_jax.training.state import StartingPoint, initial_state
from dongwu_jax.training.trainer import Trainer

HOSTS = {0: "this host"}


def flipped(array, device, bit=3):
    """The same array, but one bit of what a device holds."""
    parts = []
    for shard in array.addressable_shards:
        words = np.array(shard.data)
        if shard.device == device:
            words.view(np.uint32).reshape(-1)[words.size // 2] ^= 1 << bit
        parts.append(jax.device_put(words, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


@pytest.mark.parametrize("mesh", [{"data": 4, "fsdp": 2}, {"data": 2, "tensor": 2, "fsdp": 2}])
def test_a_flipped_bit_is_found_and_its_device_named(mesh, tmp_path):
    config = run_config(tmp_path, mesh=mesh)
    sharding = make_sharding(config, jax.devices())
    parameters = initial_state(config, sharding, StartingPoint()).parameters
    check = WeightCheck(sharding, parameters)
    check.check(7, parameters, HOSTS)
    device = jax.devices()[5]
    weight = parameters["layers"][1]["mlp"]["up_proj"]
    parameters["layers"][1]["mlp"]["up_proj"] = flipped(weight, device)
    with pytest.raises(HardwareFaultError, match="step 7: the data-parallel replicas") as found:
        check.check(7, parameters, HOSTS)
    named = str(found.value)
    assert f"this host (device {device.id})" in named
    # Of four replicas the odd one is known, of two it is not.
    assert named.count("(device") == (1 if mesh["data"] == 4 else 2)


def test_a_run_compares_its_replicas(tmp_path):
    config = run_config(tmp_path, guards={"weight_check_interval": 4}, training={"duration": 9})
    trainer = Trainer(config)
    checked, check = [], trainer._weight_check.check

    def counting(step, parameters, hosts):
        checked.append(step)
        check(step, parameters, hosts)
        if step == 8:
            parameters = parameters | {"lm_head": flipped(parameters["lm_head"], jax.devices()[3])}
            check(step, parameters, hosts)

    trainer._weight_check.check = counting
    with pytest.raises(HardwareFaultError, match=r"step 8: .* \(device 3\)"):
        trainer.run()
    assert checked == [4, 8]
    assert trainer.checkpoints.latest_step is None
