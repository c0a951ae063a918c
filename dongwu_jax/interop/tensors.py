"""One table: every tensor of a Llama in our layout, and where other formats keep it.

Ours keeps natural shapes such as `[embed, heads, head_dim]`; a torch Linear stores `[out, in]` with
the parts of each side flattened. Rotary positions rotate halves, as in Hugging Face, so the rows
within a head keep their order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from dongwu_jax.config import ModelConfig

Axes = tuple[str, ...]


@dataclass(frozen=True)
class TensorRow:
    """One kind of tensor. Names of tensors in a block lack the prefix with the block's number."""

    name: str  # ours
    axes: Axes  # the meaning of our dimensions
    torch_axes: tuple[Axes, ...]  # for each dimension in torch, the axes flattened into it
    hugging_face: str
    gguf: str
    meta: str | None  # None: the format has no such tensor


_EMBED, _MLP, _VOCAB, _NORM = ("embed",), ("mlp",), ("vocab",), ("norm",)
_HEADS, _KV_HEADS = ("heads", "head_dim"), ("kv_heads", "head_dim")


def _linear(
    name: str, inputs: Axes, outputs: Axes, hugging_face: str, gguf: str, meta: str
) -> TensorRow:
    return TensorRow(name, inputs + outputs, (outputs, inputs), hugging_face, gguf, meta)


def _vector(
    name: str, axes: Axes, hugging_face: str, gguf: str, meta: str | None = None
) -> TensorRow:
    return TensorRow(name, axes, (axes,), hugging_face, gguf, meta)


_EMBEDDING = TensorRow(
    "embed_tokens",
    ("vocab", "embed"),
    (_VOCAB, _EMBED),
    "model.embed_tokens.weight",
    "token_embd.weight",
    "tok_embeddings.weight",
)
_BLOCK = (
    # ours, axes (of input and output), Hugging Face, GGUF, Meta
    _vector(
        "attention_norm",
        _NORM,
        "input_layernorm.weight",
        "attn_norm.weight",
        "attention_norm.weight",
    ),
    _linear(
        "attention.q_proj",
        _EMBED,
        _HEADS,
        "self_attn.q_proj.weight",
        "attn_q.weight",
        "attention.wq.weight",
    ),
    _linear(
        "attention.k_proj",
        _EMBED,
        _KV_HEADS,
        "self_attn.k_proj.weight",
        "attn_k.weight",
        "attention.wk.weight",
    ),
    _linear(
        "attention.v_proj",
        _EMBED,
        _KV_HEADS,
        "self_attn.v_proj.weight",
        "attn_v.weight",
        "attention.wv.weight",
    ),
    _linear(
        "attention.o_proj",
        _HEADS,
        _EMBED,
        "self_attn.o_proj.weight",
        "attn_output.weight",
        "attention.wo.weight",
    ),
    _vector(
        "mlp_norm",
        _NORM,
        "post_attention_layernorm.weight",
        "ffn_norm.weight",
        "ffn_norm.weight",
    ),
    _linear(
        "mlp.gate_proj",
        _EMBED,
        _MLP,
        "mlp.gate_proj.weight",
        "ffn_gate.weight",
        "feed_forward.w1.weight",
    ),
    _linear(
        "mlp.up_proj",
        _EMBED,
        _MLP,
        "mlp.up_proj.weight",
        "ffn_up.weight",
        "feed_forward.w3.weight",
    ),
    _linear(
        "mlp.down_proj",
        _MLP,
        _EMBED,
        "mlp.down_proj.weight",
        "ffn_down.weight",
        "feed_forward.w2.weight",
    ),
)
_BLOCK_BIASES = (
    _vector("attention.q_bias", _HEADS, "self_attn.q_proj.bias", "attn_q.bias"),
    _vector("attention.k_bias", _KV_HEADS, "self_attn.k_proj.bias", "attn_k.bias"),
    _vector("attention.v_bias", _KV_HEADS, "self_attn.v_proj.bias", "attn_v.bias"),
)
_FINAL_NORM = _vector("final_norm", _NORM, "model.norm.weight", "output_norm.weight", "norm.weight")
_HEAD = _linear("lm_head", _EMBED, _VOCAB, "lm_head.weight", "output.weight", "output.weight")

_ROTATED = ("attention.q_proj", "attention.q_bias", "attention.k_proj", "attention.k_bias")


@dataclass(frozen=True)
class Tensor:
    """One tensor of one model: a row of the table with its sizes."""

    row: TensorRow
    layer: int | None  # None outside the blocks
    sizes: dict[str, int]

    @property
    def name(self) -> str:
        """Our dotted name, e.g. `layers.0.attention.q_proj`."""
        return self._with_prefix("layers", self.row.name)

    @property
    def hugging_face(self) -> str:
        """Name in a Hugging Face checkpoint."""
        return self._with_prefix("model.layers", self.row.hugging_face)

    @property
    def gguf(self) -> str:
        """Name in a GGUF file."""
        return self._with_prefix("blk", self.row.gguf)

    @property
    def meta(self) -> str:
        """Name in Meta's files.

        Raises:
            ValueError: the format has no such tensor.
        """
        if self.row.meta is None:
            raise ValueError(f"{self.name} has no place in Meta's format")
        return self._with_prefix("layers", self.row.meta)

    @property
    def shape(self) -> tuple[int, ...]:
        """Our shape."""
        return tuple(self.sizes[axis] for axis in self.row.axes)

    @property
    def rotated_heads(self) -> int | None:
        """Heads of a query or key, whose rows rotary positions turn; None for the others."""
        if self.row.name not in _ROTATED:
            return None
        return self.sizes["heads" if "heads" in self.row.axes else "kv_heads"]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Shape in torch."""
        return tuple(prod(self.sizes[axis] for axis in axes) for axes in self.row.torch_axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our layout -> torch's; a view where possible, every bit kept."""
        return array.transpose(self._torch_order()).reshape(self.torch_shape)

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Torch's layout -> ours; a view where possible, every bit kept."""
        order = self._torch_order()
        return array.reshape([self.shape[axis] for axis in order]).transpose(np.argsort(order))

    def _with_prefix(self, blocks: str, name: str) -> str:
        return name if self.layer is None else f"{blocks}.{self.layer}.{name}"

    def _torch_order(self) -> Sequence[int]:
        """Our dimensions in the order in which torch stores them."""
        return [self.row.axes.index(axis) for axes in self.row.torch_axes for axis in axes]


def halves_from_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of query or key that rotate (2i, 2i + 1) within a head -> (i, i + half), as ours."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def pairs_from_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of query or key as ours -> rows that rotate (2i, 2i + 1) within a head."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def joined_shape(shape: tuple[int, ...], axis: int, parts: int) -> tuple[int, ...]:
    """What so many equal parts of this shape are together, joined along an axis."""
    return (*shape[:axis], shape[axis] * parts, *shape[axis + 1 :])


def model_tensors(config: ModelConfig) -> list[Tensor]:
    """Every tensor of a model, the embedding first and the head last."""
    sizes = {
        "vocab": config.vocab_rows,
        "embed": config.hidden_size,
        "norm": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.width_per_head,
        "mlp": config.intermediate_size,
    }
    block = _BLOCK + (_BLOCK_BIASES if config.qkv_bias else ())
    ends = (_FINAL_NORM,) if config.tie_word_embeddings else (_FINAL_NORM, _HEAD)
    return [
        Tensor(_EMBEDDING, None, sizes),
        *(Tensor(row, layer, sizes) for layer in range(config.num_layers) for row in block),
        *(Tensor(row, None, sizes) for row in ends),
    ]


def common_dtype(dtypes: Iterable[np.dtype]) -> str:
    """The format that keeps every value of tensors stored in these."""
    names = {dtype.name for dtype in dtypes}
    if len(names) == 1:
        return names.pop()
    return "float64" if "float64" in names else "float32"


def mixed_dtype_notes(dtypes: Iterable[np.dtype]) -> list[str]:
    """What to tell when tensors are stored in several formats."""
    names = sorted({dtype.name for dtype in dtypes})
    if len(names) < 2:
        return []
    return [
        f"tensors are stored as {' and '.join(names)}; written as one format, "
        "--target-params-dtype or the one that keeps every value"
    ]
