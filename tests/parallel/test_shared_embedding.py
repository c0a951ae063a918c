"""Looking tokens up in a matrix whose columns devices share, against the whole matrix."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dongwu_jax.models.embedding import lookup
from dongwu_jax.parallel.embedding import column_owners, own_columns, own_rows, tokens_of_all
from dongwu_jax.parallel.mesh import MANUAL_AXES, make_mesh
from dongwu_jax.parallel.sharding import LogicalSharding, local_to, resolve_rules

AXES = ("vocab", "embed")
ROWS = PartitionSpec(("data", "fsdp"), "context")


def on_devices(mesh, rules, function, in_specs, out_specs):
    shape = {"pipe": 1, "data": 1, "fsdp": 1, "context": 1, "tensor": 1} | mesh
    sharding = LogicalSharding(make_mesh(shape), resolve_rules(rules))

    def local(*arrays):
        with local_to(sharding):
            return function(*arrays)

    return jax.jit(
        jax.shard_map(
            local,
            mesh=sharding.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(MANUAL_AXES),
            check_vma=False,
        )
    )


@pytest.mark.parametrize(
    "mesh",
    [{"fsdp": 8}, {"fsdp": 4, "context": 2}, {"context": 4, "tensor": 2}, {"data": 2, "fsdp": 4}],
)
def test_every_device_gets_whole_rows_of_its_own_tokens(mesh):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(50, 32)).astype(np.float32)
    tokens = rng.integers(50, size=(8, 16), dtype=np.int32)

    def embed(table, tokens):
        owners = column_owners(AXES)
        assert owners
        rows = own_rows(lookup(table, tokens_of_all(tokens, owners)), owners)
        back = own_rows(own_columns(rows, owners), owners)
        return rows, back

    columns = PartitionSpec(None, ("fsdp", "context"))
    rows, back = on_devices(mesh, {}, embed, (columns, ROWS), (ROWS, ROWS))(table, tokens)
    np.testing.assert_array_equal(rows, table[tokens])
    np.testing.assert_array_equal(back, rows)


@pytest.mark.parametrize(
    ("mesh", "rules"),
    [({"data": 8}, {}), ({"fsdp": 8}, {"vocab": ["fsdp"], "embed": None}), ({"tensor": 8}, {})],
)
def test_nothing_to_exchange_where_columns_are_whole(mesh, rules):
    found = []

    def note(x):
        found.append(column_owners(AXES))
        return x

    on_devices(mesh, rules, note, PartitionSpec(), PartitionSpec())(np.zeros(8, np.float32))
    assert found == [()] * len(found)
    assert found
