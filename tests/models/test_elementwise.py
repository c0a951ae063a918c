"""The hand-written gradients of norm and SwiGLU against JAX's own, of the formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from dongwu_jax.models.elementwise import rms_norm, swiglu

RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def assert_same_gradients(ours, formula, *arguments):
    weight = normal(*jax.eval_shape(formula, *arguments).shape)

    def gradients(function):
        loss = lambda *arguments: jnp.sum(function(*arguments) * weight)  # noqa: E731
        return jax.grad(loss, argnums=tuple(range(len(arguments))))(*arguments)

    np.testing.assert_allclose(ours(*arguments), formula(*arguments), rtol=1e-5, atol=1e-6)
    for found, expected in zip(gradients(ours), gradients(formula), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_rms_norm():
    def formula(x, scale):
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * scale

    assert_same_gradients(lambda x, s: rms_norm(x, s, 1e-5), formula, normal(2, 5, 16), normal(16))


def test_swiglu():
    def formula(gate, up):
        return gate / (1 + jnp.exp(-gate)) * up

    assert_same_gradients(swiglu, formula, normal(2, 5, 16), normal(2, 5, 16))


def test_they_keep_nothing_wider_than_their_inputs():
    """In bfloat16 no activation is kept in float32, and none that the products keep anyway."""
    x = normal(2, 64, 32).astype(jnp.bfloat16)
    _, vjp = jax.vjp(lambda x: rms_norm(x, jnp.ones(32), 1e-5), x)
    kept = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size >= x.size]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]
    _, vjp = jax.vjp(swiglu, x, x + 1)
    kept = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size >= x.size]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16, jnp.bfloat16]
