"""Adam moments in Megatron checkpoints: found, put together, or refused with a reason."""

import argparse

import numpy as np
import pytest
import torch
from megatron_training_files import (
    genuine_checkpoint,
    write_checkpoint,
    write_distributed_checkpoint,
)

from dongwu_jax.interop.megatron.continuation import Continuation
from dongwu_jax.interop.megatron.distributed import TorchDistSource
from dongwu_jax.interop.megatron.rank_moments import rank_moments
from dongwu_jax.interop.megatron.source import MegatronSource
from dongwu_jax.interop.megatron.training_state import updates_done

HIDDEN, HEADS, GROUPS, WIDTH = 64, 8, 2, 8


@pytest.fixture(scope="module")
def genuine(shared_data):
    return genuine_checkpoint(shared_data)


@pytest.fixture(scope="module")
def megatron(shared_data):
    return MegatronSource(shared_data / "megatron" / "train" / "ckpt_tp1pp1")


def _state(genuine, number, kind):
    return genuine["optimizer"]["state"][number][kind].numpy()


@pytest.mark.parametrize("kind", ["exp_avg", "exp_avg_sq"])
def test_entries_belong_to_the_weights_that_megatron_registers(genuine, megatron, kind):
    """Entry 2 is linear_qkv of block 0, 20 its second norm; written out by hand."""
    read = getattr(rank_moments(megatron), kind)
    np.testing.assert_array_equal(read("embed_tokens"), _state(genuine, 0, kind))
    np.testing.assert_array_equal(read("lm_head"), _state(genuine, 17, kind).T)
    qkv = _state(genuine, 2, kind).reshape(GROUPS, HEADS // GROUPS + 2, WIDTH, HIDDEN)
    key = qkv[:, -2].transpose(2, 0, 1)
    np.testing.assert_array_equal(read("layers.0.attention.k_proj"), key)
    gate, up = np.split(_state(genuine, 7, kind), 2)
    np.testing.assert_array_equal(read("layers.1.mlp.gate_proj"), gate.T)
    np.testing.assert_array_equal(read("layers.1.mlp.up_proj"), up.T)
    np.testing.assert_array_equal(read("layers.0.mlp_norm"), _state(genuine, 19, kind))
    np.testing.assert_array_equal(read("final_norm"), _state(genuine, 26, kind))


def _assert_same(one, other, kinds=("exp_avg", "exp_avg_sq", "master")):
    assert one.names() == other.names()
    for name in other.names():
        for kind in kinds:
            values = getattr(one, kind)(name)
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, getattr(other, kind)(name), err_msg=name)


@pytest.mark.parametrize(
    "layout",
    [
        {"tensor": 2},
        {"pipeline": 4},
        {"bfloat16": True},
        {"tensor": 2, "pipeline": 2, "bfloat16": True},
    ],
    ids=str,
)
def test_every_layout_holds_the_same(genuine, megatron, tmp_path, layout):
    """With bfloat16 weights, `master` gives the float32 ones."""
    source = MegatronSource(write_checkpoint(tmp_path, genuine, **layout))
    _assert_same(rank_moments(source), rank_moments(megatron))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_torch_dist_holds_the_same(genuine, megatron, tmp_path, bfloat16):
    path = write_distributed_checkpoint(tmp_path, genuine, "reshardable", bfloat16)
    continuation = Continuation(path)
    kinds = ("exp_avg", "exp_avg_sq") + (("master",) if bfloat16 else ())
    moments = TorchDistSource(path).moments()
    _assert_same(moments, rank_moments(megatron), kinds)
    assert continuation.run.updates == 20
    if not bfloat16:
        assert moments.master("embed_tokens") is None


def test_buckets_are_not_carried(genuine, tmp_path):
    path = write_distributed_checkpoint(tmp_path / "dist", genuine, "buckets")
    assert "--dist-ckpt-optim-fully-reshardable" in TorchDistSource(path).moments()
    adam = {"param_groups": genuine["optimizer"]["param_groups"]}
    _write_with_optimizer(tmp_path / "torch", genuine, {"optimizer": adam})
    reason = rank_moments(MegatronSource(tmp_path / "torch"))
    assert "--dist-ckpt-optim-fully-reshardable" in reason


def _write_with_optimizer(folder, genuine, optimizer):
    """The genuine weights with another optimizer entry."""
    without = {name: value for name, value in genuine.items() if name != "optimizer"}
    write_checkpoint(folder, without)
    file = folder / "iter_0000020" / "mp_rank_00" / "model_optim_rng.pt"
    torch.serialization.add_safe_globals([argparse.Namespace])
    torch.save(torch.load(file, weights_only=True) | {"optimizer": optimizer}, file)
    return folder


def _swap_groups_shape(optimizer):
    optimizer["state"][1], optimizer["state"][2] = optimizer["state"][2], optimizer["state"][1]


def _drop_entry(optimizer):
    del optimizer["state"][26]


def _mix_groups(optimizer):
    first, second = optimizer["param_groups"]
    first["params"], second["params"] = [*range(27)], []


def _split_groups(optimizer):
    first, _ = optimizer["param_groups"]
    optimizer["param_groups"].append(first | {"params": first["params"][9:]})
    first["params"] = first["params"][:9]


def _other_dtype(optimizer):
    optimizer["state"][5]["exp_avg"] = optimizer["state"][5]["exp_avg"].to(torch.bfloat16)


def _no_adam(optimizer):
    optimizer["state"] = {0: {"momentum_buffer": torch.zeros(2)}}


def _nonsense(optimizer):
    optimizer["param_groups"] = "none"


@pytest.mark.parametrize(
    "damage",
    [
        _swap_groups_shape,
        _drop_entry,
        _mix_groups,
        _split_groups,
        _other_dtype,
        _no_adam,
        _nonsense,
    ],
)
def test_any_doubt_is_a_reason_not_to_carry(genuine, tmp_path, damage):
    adam = genuine["optimizer"]
    optimizer = {
        "state": {number: dict(entry) for number, entry in adam["state"].items()},
        "param_groups": [dict(group) for group in adam["param_groups"]],
    }
    damage(optimizer)
    source = MegatronSource(_write_with_optimizer(tmp_path, genuine, optimizer))
    assert "unknown layout" in rank_moments(source)


def test_masters_that_are_not_the_weights_are_refused(genuine, tmp_path):
    """Two norms exchanged: shapes agree, values tell."""
    path = write_checkpoint(tmp_path, genuine, bfloat16=True)
    file = path / "iter_0000020" / "mp_rank_00" / "model_optim_rng.pt"
    torch.serialization.add_safe_globals([argparse.Namespace])
    tree = torch.load(file, weights_only=True)
    norms = tree["optimizer"]["fp32_from_fp16_params"][1]
    norms[2], norms[3] = norms[3], norms[2]
    torch.save(tree, file)
    assert "does not round to the weight" in rank_moments(MegatronSource(path))


@pytest.mark.parametrize(
    ("optimizer", "updates"),
    [
        ({"state": {0: {"exp_avg": None}}, "param_groups": [{"step": 7}]}, 7),  # Apex
        ({"optimizer": {"param_groups": [{"step": 7.0}, {"step": 7.0}]}}, 7),  # distributed
        ({"optimizer": {"state": {"common_step": 7}, "param_groups": [{}]}}, 7),  # torch_dist
        ({"state": {0: {"step": 7}}, "param_groups": []}, 7),
        ({"state": {}, "param_groups": [{"step": None}]}, None),
        (None, None),
        ([], None),
    ],
)
def test_updates_are_counted_where_each_optimizer_counts(optimizer, updates):
    assert updates_done({"optimizer": optimizer}) == updates
