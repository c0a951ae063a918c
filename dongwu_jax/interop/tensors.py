"""One table: every tensor of a Llama in our layout, and where other formats keep it.

Ours keeps natural shapes such as `[embed, heads, head_dim]`; a torch Linear stores `[out, in]` with
the parts of each side flattened. Rotary positions rotate halves, as in Hugging Face, so the rows
within a head keep their order.
"""

from collections.abc import Sequence
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


_EMBED, _MLP, _VOCAB, _NORM = ("embed",), ("mlp",), ("vocab",), ("norm",)
_HEADS, _KV_HEADS = ("heads", "head_dim"), ("kv_heads", "head_dim")


def _linear(name: str, inputs: Axes, outputs: Axes, hugging_face: str, gguf: str) -> TensorRow:
    return TensorRow(name, inputs + outputs, (outputs, inputs), hugging_face, gguf)


def _vector(name: str, axes: Axes, hugging_face: str, gguf: str) -> TensorRow:
    return TensorRow(name, axes, (axes,), hugging_face, gguf)


_EMBEDDING = TensorRow(
    "embed_tokens",
    ("vocab", "embed"),
    (_VOCAB, _EMBED),
    "model.embed_tokens.weight",
    "token_embd.weight",
)
_BLOCK = (
    # ours, axes (of input and output), Hugging Face, GGUF
    _vector("attention_norm", _NORM, "input_layernorm.weight", "attn_norm.weight"),
    _linear("attention.q_proj", _EMBED, _HEADS, "self_attn.q_proj.weight", "attn_q.weight"),
    _linear("attention.k_proj", _EMBED, _KV_HEADS, "self_attn.k_proj.weight", "attn_k.weight"),
    _linear("attention.v_proj", _EMBED, _KV_HEADS, "self_attn.v_proj.weight", "attn_v.weight"),
    _linear("attention.o_proj", _HEADS, _EMBED, "self_attn.o_proj.weight", "attn_output.weight"),
    _vector("mlp_norm", _NORM, "post_attention_layernorm.weight", "ffn_norm.weight"),
    _linear("mlp.gate_proj", _EMBED, _MLP, "mlp.gate_proj.weight", "ffn_gate.weight"),
    _linear("mlp.up_proj", _EMBED, _MLP, "mlp.up_proj.weight", "ffn_up.weight"),
    _linear("mlp.down_proj", _MLP, _EMBED, "mlp.down_proj.weight", "ffn_down.weight"),
)
_BLOCK_BIASES = (
    _vector("attention.q_bias", _HEADS, "self_attn.q_proj.bias", "attn_q.bias"),
    _vector("attention.k_bias", _KV_HEADS, "self_attn.k_proj.bias", "attn_k.bias"),
    _vector("attention.v_bias", _KV_HEADS, "self_attn.v_proj.bias", "attn_v.bias"),
)
_FINAL_NORM = _vector("final_norm", _NORM, "model.norm.weight", "output_norm.weight")
_HEAD = _linear("lm_head", _EMBED, _VOCAB, "lm_head.weight", "output.weight")


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
    def shape(self) -> tuple[int, ...]:
        """Our shape."""
        return tuple(self.sizes[axis] for axis in self.row.axes)

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
