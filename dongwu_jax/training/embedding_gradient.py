"""What the gradient of embedded tokens means for the embedding matrix."""

import jax

from dongwu_jax.config import ModelConfig
from dongwu_jax.models.embedding import add_lookup_gradient
from dongwu_jax.models.parameters import Parameters, bind
from dongwu_jax.parallel.embedding import column_owners, own_columns, tokens_of_all
from dongwu_jax.parallel.weights import is_joined


def add_embedding_gradient(
    config: ModelConfig,
    total: Parameters,
    weights: Parameters,
    tokens: jax.Array,
    gradient: jax.Array,
) -> Parameters:
    """`total` with a micro batch's share added to its `embed_tokens`.

    Rows, or the columns of them that this device holds, are added where they belong: a matrix of
    zeros to hold them, and a pass to add it, would cost more than the lookup. Where devices share
    the matrix by rows, each gets its part of their sum.

    Args:
        tokens: int32 [batch, length].
        gradient: of the embedded tokens, [batch, length, embed].
    """
    axes = bind(config, weights).embed_tokens.get_metadata("axes")
    owners = column_owners(axes)
    if owners:
        tokens, gradient = tokens_of_all(tokens, owners), own_columns(gradient, owners)
    if owners or not is_joined(axes):
        rows = add_lookup_gradient(total["embed_tokens"], tokens, gradient)
        return total | {"embed_tokens": rows}

    def embed(table: jax.Array) -> jax.Array:
        return bind(config, weights | {"embed_tokens": table}).embed(tokens)

    of_table = jax.vjp(embed, weights["embed_tokens"])[1](gradient)[0]
    so_far = total["embed_tokens"]
    return total | {"embed_tokens": so_far + of_table.astype(so_far.dtype)}
