"""The gradient of a lookup in bfloat16 is rounded once, not at every occurrence of a token."""

import jax
import jax.numpy as jnp
import numpy as np

from dongwu_jax.models.embedding import lookup


def test_gradients_of_a_frequent_token_add_up_exactly():
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random((4, 1024)) < 0.2, 7, rng.integers(0, 32, (4, 1024)))
    gradient = jnp.asarray(rng.normal(size=(4, 1024, 8)), jnp.bfloat16)
    table = jnp.asarray(rng.normal(size=(32, 8)), jnp.bfloat16)
    rows, vjp = jax.vjp(lambda table: lookup(table, jnp.asarray(tokens)), table)
    np.testing.assert_array_equal(rows, table[tokens])
    (found,) = vjp(gradient)
    assert found.dtype == jnp.bfloat16
    exact = np.zeros((32, 8))
    np.add.at(exact, tokens, np.asarray(gradient, np.float64))
    # One rounding to eight bits, and what float32 loses on the way.
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-3)
