"""Looking up embeddings, with a gradient that adds up in float32."""

import functools

import jax
import jax.numpy as jnp

from dongwu_jax.parallel.sharding import constrain


def lookup(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of a matrix.

    A frequent token occurs thousands of times in a micro batch; its gradient would be rounded at
    each occurrence if it added up in bfloat16.

    Args:
        table: [vocab, embed]; the vocabulary may be sharded.
        tokens: int32 [batch, length].

    Returns:
        [batch, length, embed].
    """
    return _lookup(table, tokens, table.shape[0], table.dtype.name)


def add_lookup_gradient(total: jax.Array, tokens: jax.Array, gradient: jax.Array) -> jax.Array:
    """`total` plus the gradient that `lookup` gives its table, row by row where it is not zero.

    Args:
        total: [vocab, embed].
        tokens: int32 [batch, length].
        gradient: of the rows, [batch, length, embed].
    """
    total = constrain(total, "vocab", "hidden")
    return constrain(total.at[tokens].add(gradient.astype(total.dtype)), "vocab", "hidden")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lookup(table: jax.Array, tokens: jax.Array, rows: int, dtype: str) -> jax.Array:
    return table[tokens]


def _forward(
    table: jax.Array, tokens: jax.Array, rows: int, dtype: str
) -> tuple[jax.Array, jax.Array]:
    return table[tokens], tokens


def _backward(
    rows: int, dtype: str, tokens: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, None]:
    zeros = jnp.zeros((rows, gradient.shape[-1]), jnp.float32)
    return add_lookup_gradient(zeros, tokens, gradient).astype(dtype), None


_lookup.defvjp(_forward, _backward)
