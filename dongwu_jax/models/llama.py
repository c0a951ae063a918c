"""The Llama decoder (Touvron et al. 2023): RMSNorm, rotary positions, GQA, SwiGLU.

Flax NNX modules declare the weights (shape, meaning of each dimension, initial distribution; no
values: `parameters.py` makes and binds those) and hold the math. Nothing here knows of meshes,
key/value caches or optimizers. Dimensions in einsum strings:
b batch, t length, d hidden (embed), n heads, k kv_heads, h head_dim, f mlp, v vocab.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from dongwu_jax.config import ModelConfig
from dongwu_jax.models.adapted_weight import AdaptedWeight
from dongwu_jax.models.elementwise import rms_norm, swiglu
from dongwu_jax.models.embedding import lookup
from dongwu_jax.models.projection import Project, project
from dongwu_jax.models.remat import rematerialize
from dongwu_jax.models.rope import apply_rotary, rotary_tables
from dongwu_jax.parallel.context import Attend
from dongwu_jax.parallel.embedding import column_owners, own_rows, tokens_of_all
from dongwu_jax.parallel.sharding import constrain, constrain_both_ways
from dongwu_jax.parallel.weights import use_weight

RotaryTables = tuple[jax.Array, jax.Array]


def _declare(
    initializer: jax.nn.initializers.Initializer, shape: tuple[int, ...], *axes: str
) -> nnx.Param:
    """A float32 parameter that is still to be made."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes, initializer=initializer)


@functools.cache
def _weights(config: ModelConfig) -> Callable[..., nnx.Param]:
    """Declares matrices of this model: normal, with its standard deviation."""
    return functools.partial(_declare, jax.nn.initializers.normal(config.initializer_range))


def _norm(width: int) -> nnx.Param:
    return _declare(jax.nn.initializers.ones, (width,), "norm")


def _into_stream(output: jax.Array) -> jax.Array:
    """Lay out what is added to the residual stream."""
    return constrain_both_ways(
        output, ("batch", "residual_length", "hidden"), ("batch", "length", "hidden")
    )


class Attention(nnx.Module):
    """Grouped-query self-attention; the kernel is the caller's."""

    def __init__(self, config: ModelConfig):
        width, heads, kv_heads = config.hidden_size, config.num_heads, config.kv_heads
        head_dim = config.width_per_head
        weight = _weights(config)
        self.q_proj = weight((width, heads, head_dim), "embed", "heads", "head_dim")
        self.k_proj = weight((width, kv_heads, head_dim), "embed", "kv_heads", "head_dim")
        self.v_proj = weight((width, kv_heads, head_dim), "embed", "kv_heads", "head_dim")
        self.o_proj = weight((heads, head_dim, width), "heads", "head_dim", "embed")
        if config.qkv_bias:
            bias = functools.partial(_declare, jax.nn.initializers.zeros)
            self.q_bias = bias((heads, head_dim), "heads", "head_dim")
            self.k_bias = bias((kv_heads, head_dim), "kv_heads", "head_dim")
            self.v_bias = bias((kv_heads, head_dim), "kv_heads", "head_dim")
        self.config = config

    def __call__(
        self, x: jax.Array, rotary: RotaryTables, attend: Attend, multiply: Project
    ) -> jax.Array:
        """[batch, length, embed] -> [batch, length, embed]."""
        query = multiply(x, self.q_proj)
        key = multiply(x, self.k_proj)
        value = multiply(x, self.v_proj)
        if self.config.qkv_bias:
            query = query + self.q_bias[...].astype(x.dtype)
            key = key + self.k_bias[...].astype(x.dtype)
            value = value + self.v_bias[...].astype(x.dtype)
        query, key, value = (checkpoint_name(y, "qkv") for y in (query, key, value))
        query = constrain(apply_rotary(query, rotary), "batch", "length", "heads", "head_dim")
        key = constrain(apply_rotary(key, rotary), "batch", "length", "kv_heads", "head_dim")
        value = constrain(value, "batch", "length", "kv_heads", "head_dim")
        mixed = constrain(attend(query, key, value), "batch", "length", "heads", "head_dim")
        output = multiply(mixed, self.o_proj)
        return checkpoint_name(_into_stream(output), "attention_output")


class MLP(nnx.Module):
    """SwiGLU feed-forward (Shazeer 2020)."""

    def __init__(self, config: ModelConfig):
        width, inner = config.hidden_size, config.intermediate_size
        weight = _weights(config)
        self.gate_proj = weight((width, inner), "embed", "mlp")
        self.up_proj = weight((width, inner), "embed", "mlp")
        self.down_proj = weight((inner, width), "mlp", "embed")

    def __call__(self, x: jax.Array, multiply: Project) -> jax.Array:
        """[batch, length, embed] -> [batch, length, embed]."""
        gate = checkpoint_name(multiply(x, self.gate_proj), "gate_up")
        up = checkpoint_name(multiply(x, self.up_proj), "gate_up")
        inner = constrain(swiglu(gate, up), "batch", "length", "mlp")
        return _into_stream(multiply(inner, self.down_proj))


class Block(nnx.Module):
    """Attention and feed-forward, each on a normalised input and added to the residual stream."""

    def __init__(self, config: ModelConfig):
        self.attention_norm = _norm(config.hidden_size)
        self.attention = Attention(config)
        self.mlp_norm = _norm(config.hidden_size)
        self.mlp = MLP(config)
        self.epsilon = config.rms_norm_eps

    def __call__(
        self,
        x: jax.Array,
        rotary: RotaryTables,
        attend: Attend,
        multiply: Project = project,
    ) -> jax.Array:
        """[batch, length, embed] -> [batch, length, embed]."""
        x = x + self.attention(self.normalise(x, self.attention_norm), rotary, attend, multiply)
        return x + self.mlp(self.normalise(x, self.mlp_norm), multiply)

    def normalise(self, x: jax.Array, scale: nnx.Param) -> jax.Array:
        """What one of the two norms makes of the residual stream."""
        normalised = rms_norm(x, scale[...], self.epsilon)
        return constrain(normalised, "batch", "length", "hidden")


class Llama(nnx.Module):
    """Embedding, blocks, final norm and head."""

    def __init__(self, config: ModelConfig):
        rows, width = config.vocab_rows, config.hidden_size
        weight = _weights(config)
        self.embed_tokens = weight((rows, width), "vocab", "embed")
        self.layers = nnx.List([Block(config) for _ in range(config.num_layers)])
        self.final_norm = _norm(width)
        if not config.tie_word_embeddings:
            self.lm_head = weight((width, rows), "embed", "vocab")
        if config.teacher_hidden_size:  # for training with distillation.hidden_weight
            shape = (width, config.teacher_hidden_size)
            initializer = jax.nn.initializers.orthogonal()
            self.teacher_projection = _declare(initializer, shape, "embed", "teacher_hidden")
        self.config = config

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32 [batch, length] -> [batch, length, embed]."""
        owners = column_owners(self.embed_tokens.get_metadata("axes"))
        if owners:
            columns = lookup(self.embed_tokens[...], tokens_of_all(tokens, owners))
            embedded = own_rows(columns, owners)
        else:
            embedded = lookup(in_use(self.embed_tokens), tokens)
        return constrain(embedded, "batch", "residual_length", "hidden")

    def hidden_states(
        self,
        x: jax.Array,
        positions: jax.Array,
        attend: Attend,
        remat: str = "none",
        scan_layers: bool = False,
        projections: Sequence[Project] | None = None,
    ) -> jax.Array:
        """The normalised output of the last block.

        Args:
            x: embedded tokens, [batch, length, embed].
            positions: int32 [batch, length].
            attend: causal attention of (query, key, value).
            remat: what the backward pass recomputes, a policy of `models/remat.py`.
            scan_layers: loop over stacked blocks instead of unrolling them.
            projections: each block's product with weights, the same for all when scanned; None:
                in the weights' own dtype.

        Returns:
            [batch, length, embed].
        """
        rotary = rotary_tables(positions, self.config)
        weights = [nnx.state(layer) for layer in self.layers]
        graph = nnx.graphdef(self.layers[0])
        runs = [
            block_function(graph, rotary, attend, remat, scan_layers, multiply)
            for multiply in projections or [project] * len(weights)
        ]
        if scan_layers:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
            x, _ = jax.lax.scan(lambda x, weights: (runs[0](x, weights), None), x, stacked)
        else:
            for run, block_weights in zip(runs, weights, strict=True):
                x = run(x, block_weights)
        return self.normalise(x)

    def normalise(self, x: jax.Array) -> jax.Array:
        """The final norm of the last block's output."""
        normalised = rms_norm(x, in_use(self.final_norm), self.config.rms_norm_eps)
        return constrain(normalised, "batch", "length", "hidden")

    def head(self) -> jax.Array:
        """The output matrix, [embed, vocab]."""
        if self.config.tie_word_embeddings:
            return in_use(self.embed_tokens).T
        return in_use(self.lm_head)

    def projection_to_teacher(self) -> jax.Array:
        """[embed, teacher's embed]; of a model that is trained with `teacher_hidden_size`."""
        return in_use(self.teacher_projection)

    def logits(self, hidden: jax.Array, head: jax.Array | None = None) -> jax.Array:
        """[batch, length, embed] -> [batch, length, vocab], in the dtype of `hidden`.

        Args:
            head: what `head()` gives, when many calls shall share it.
        """
        head = self.head() if head is None else head
        return constrain(jnp.einsum("btd,dv->btv", hidden, head), "batch", "length", "vocab")


def block_function(
    graph: nnx.GraphDef,
    rotary: RotaryTables,
    attend: Attend,
    remat: str,
    inside_scan: bool,
    multiply: Project = project,
) -> Callable[[jax.Array, nnx.State], jax.Array]:
    """(activations, a block's weights) -> activations, keeping for the backward what `remat` names.

    Args:
        graph: the structure of a block.
        inside_scan: whether the caller loops over blocks with a scan.
        multiply: product of activations with weights.
    """

    def run(x: jax.Array, weights: nnx.State) -> jax.Array:
        x = checkpoint_name(x, "block_input")
        return block_in_use(graph, weights)(x, rotary, attend, multiply)

    return rematerialize(run, remat, inside_scan)


def block_in_use(graph: nnx.GraphDef, weights: nnx.State) -> Block:
    """A block whose weights are as a computation needs them, wherever their parts lie."""
    joined = jax.tree.map(
        lambda weight: weight.replace(in_use(weight)),
        weights,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
    return nnx.merge(graph, joined)


def in_use(weight: nnx.Param) -> Any:
    """The weight (an array, one in 8 bits, or one with an adapter) as a computation needs it."""
    axes, value = weight.get_metadata("axes"), weight.get_value()
    if isinstance(value, AdaptedWeight):
        return value.in_use(axes)
    return jax.tree.map(lambda x: use_weight(x, axes) if x.ndim else x, value)
