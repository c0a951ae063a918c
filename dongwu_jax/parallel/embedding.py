"""Embeddings out of a matrix of which each device holds some columns.

Joining the matrix for every micro batch would move all its rows, and their gradients back in the
dtype of sums. Instead each device looks up its columns for the tokens of all, and they exchange
what was looked up.
"""

import jax

from dongwu_jax.parallel.collectives import all_gather, all_to_all
from dongwu_jax.parallel.sharding import LogicalAxes, current_sharding
from dongwu_jax.parallel.weights import weight_layout

_ROWS = ("batch", "residual_length", "hidden")
_COLUMNS = 1  # dimension of the matrix


def column_owners(axes: LogicalAxes) -> tuple[str, ...]:
    """The mesh axes over which devices share the columns of an embedding matrix.

    Args:
        axes: logical axes of the matrix.

    Returns:
        Nothing where each has them all, or devices share its rows.
    """
    sharding = current_sharding()
    if sharding is None:
        return ()
    layout = weight_layout(sharding, axes)
    return layout.per_use if layout.dim == _COLUMNS else ()


def tokens_of_all(tokens: jax.Array, owners: tuple[str, ...]) -> jax.Array:
    """int32 [batch, length] of every device -> [devices x batch, length]."""
    return all_gather(tokens, owners, 0, ("batch", "length"))


def own_rows(columns: jax.Array, owners: tuple[str, ...]) -> jax.Array:
    """Own columns for all tokens -> all columns for own tokens.

    [devices x batch, length, embed / devices] -> [batch, length, embed].
    """
    pieces = _exchanged(columns, owners)
    pieces = pieces.reshape(_devices(owners), -1, *pieces.shape[1:])
    joined = pieces.transpose(1, 2, 0, 3)
    return joined.reshape(*joined.shape[:2], -1)


def own_columns(rows: jax.Array, owners: tuple[str, ...]) -> jax.Array:
    """The inverse of `own_rows`."""
    batch, length, _ = rows.shape
    pieces = rows.reshape(batch, length, _devices(owners), -1).transpose(2, 0, 1, 3)
    return _exchanged(pieces.reshape(-1, length, pieces.shape[-1]), owners)


def _exchanged(pieces: jax.Array, owners: tuple[str, ...]) -> jax.Array:
    """Piece i, [batch, length, embed / devices], to device i; what comes in the same order.

    Along the first dimension alone: exchanging one for another would make XLA store the residual
    stream with its last dimension first.
    """
    return all_to_all(pieces, owners, 0, 0, _ROWS)


def _devices(owners: tuple[str, ...]) -> int:
    return jax.lax.axis_size(owners)
