"""Products with weights: their gradients, and the dtype in which those of shared weights appear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from dongwu_jax.models.projection import project
from dongwu_jax.parallel.mesh import MANUAL_AXES, make_mesh
from dongwu_jax.parallel.sharding import LogicalSharding, local_to, resolve_rules


@pytest.mark.parametrize(
    ("inputs", "outputs", "axes"),
    [
        ((24,), (40,), ("embed", "mlp")),
        ((24,), (4, 8), ("embed", "heads", "head_dim")),
        ((4, 8), (24,), ("heads", "head_dim", "embed")),
    ],
)
def test_gradients_are_those_of_the_plain_product(inputs, outputs, axes):
    rng = np.random.default_rng(0)
    x, weight, gradient = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, 6, *inputs), (*inputs, *outputs), (2, 6, *outputs))
    )

    def plain(x, weight):
        flat = x.reshape(12, -1) @ weight.reshape(x.reshape(12, -1).shape[1], -1)
        return flat.reshape(gradient.shape)

    found, found_vjp = jax.vjp(lambda x, w: project(x, nnx.Param(w, axes=axes)), x, weight)
    expected, expected_vjp = jax.vjp(plain, x, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(found_vjp(gradient), expected_vjp(gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "reduced", "dtype"),
    [
        ({"fsdp": 8}, "float32", "float32"),
        ({"fsdp": 8}, "bfloat16", "bfloat16"),
        ({"data": 8}, "float32", "bfloat16"),  # summed once a step, in float32 by then
    ],
)
def test_gradients_that_devices_sum_leave_their_product_in_that_dtype(mesh, reduced, dtype):
    shape = {"pipe": 1, "data": 1, "fsdp": 1, "context": 1, "tensor": 1} | mesh
    sharding = LogicalSharding(make_mesh(shape), resolve_rules({}), reduced)
    x, weight = jnp.ones((2, 8, 16), jnp.bfloat16), jnp.ones((16, 32), jnp.bfloat16)

    def of_weight(weight, x):
        with local_to(sharding):
            loss = lambda weight: jnp.sum(project(x, nnx.Param(weight, axes=("embed", "mlp"))))  # noqa: E731
            return jax.grad(loss)(weight)

    spec = PartitionSpec()
    mapped = jax.shard_map(
        of_weight,
        mesh=sharding.mesh,
        in_specs=(spec, spec),
        out_specs=spec,
        axis_names=set(MANUAL_AXES),
        check_vma=False,
    )
    text = str(jax.make_jaxpr(mapped)(weight, x))
    letter = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    assert f"{letter}[16,32] = dot_general" in text
