"""Rules: overrides, collisions, divisibility."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from dongwu_jax.config import parse_config
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.parallel.mesh import MANUAL_AXES, MESH_AXES, make_mesh
from dongwu_jax.parallel.sharding import (
    LogicalSharding,
    constrain,
    local_to,
    resolve_rules,
)


def layout(overrides=None, **sizes):
    mesh = make_mesh({axis: sizes.get(axis, 1) for axis in MESH_AXES})
    return LogicalSharding(mesh, resolve_rules(overrides or {}))


def test_weights_follow_the_rules():
    sharding = layout(fsdp=2, tensor=4)
    assert sharding.spec(("embed", "mlp")) == PartitionSpec("fsdp", "tensor")
    assert sharding.spec(("heads", "head_dim", "embed")) == PartitionSpec("tensor", None, "fsdp")
    assert sharding.spec(("norm",)) == PartitionSpec(None)
    array = jax.device_put(jnp.zeros((8, 16)), sharding.named(("embed", "mlp"), (8, 16)))
    assert array.addressable_shards[0].data.shape == (4, 4)


def test_overrides_replace_a_rule():
    sharding = layout({"mlp": None, "embed": ["fsdp", "data"]}, fsdp=2, data=4)
    assert sharding.spec(("embed", "mlp")) == PartitionSpec(("fsdp", "data"), None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mpl": ["tensor"]}, "unknown logical axis 'mpl'; did you mean mlp?"),
        ({"mlp": ["tensr"]}, "unknown mesh axis 'tensr'"),
    ],
)
def test_unknown_names(overrides, message):
    with pytest.raises(UserError, match=message):
        resolve_rules(overrides)


@pytest.mark.parametrize(("heads", "split"), [(["tensor"], ("tensor",)), (None, ())])
def test_a_ring_splits_heads_where_the_weights_do(heads, split):
    settings = {
        "mesh": {"context": 2, "tensor": 2},
        "sharding": {"context_attention": "ring", "rules": {"heads": heads}},
    }
    rules = make_sharding(parse_config(settings, "test"), jax.devices()).rules
    assert rules["attention_length"] == ("context",)
    assert rules["attention_heads"] == rules["attention_kv_heads"] == split


def test_one_mesh_axis_twice_in_an_array():
    sharding = layout({"embed": ["tensor"]}, data=2, tensor=4)
    with pytest.raises(UserError, match="embed and mlp both map to mesh axis tensor"):
        sharding.spec(("embed", "mlp"))


def test_a_dimension_that_does_not_divide():
    with pytest.raises(UserError, match="mlp=10 is not divisible by its 4 shards"):
        layout(data=2, tensor=4).named(("embed", "mlp"), (8, 10))


def test_constrain_reaches_the_program():
    sharding = layout(data=2, tensor=4)

    def local(x):
        with local_to(sharding):
            return constrain(x * 2, "batch", "residual_length")

    batch = PartitionSpec("data")
    program = jax.shard_map(
        local, mesh=sharding.mesh, in_specs=batch, out_specs=batch, axis_names={*MANUAL_AXES}
    )
    assert jax.jit(program)(jnp.zeros((8, 4))).sharding.spec == PartitionSpec("data", "tensor")


def test_constrain_is_nothing_without_a_mesh():
    x = jnp.zeros((3, 5))
    assert constrain(x, "batch", "residual_length") is x
