"""How Megatron-LM packs, splits and names the tensors of a Llama.

Query, key and value share one matrix, and so do gate and up. A rank of tensor parallelism holds a
part of the rows or columns. Arrays here have torch's layout, `[out, in]`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.tensors import joined_shape

Naming = Literal["legacy", "mcore", "mcore_te", "megatron_llama"]
NAMINGS: tuple[Naming, ...] = get_args(Naming)

QkvOrder = Literal["groups", "sections", "channels"]
"""How rows of query, key and value mix: by KV group (checkpoint version 2 and later); all queries,
all keys, all values of a rank (version 0, and Alibaba's Megatron-LLaMA); interleaved row by row
(version 1)."""


@dataclass(frozen=True)
class PackedRow:
    """One kind of stored tensor, and which of ours it holds."""

    kind: str
    parts: tuple[str, ...]  # our names within a block, in the order in which they are packed
    split_axis: int | None  # dimension divided over tensor parallel ranks; None: every rank has all
    legacy: str  # names within a block; for the others, whole
    mcore: str
    mcore_te: str


_ATTENTION = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_BIASES = ("attention.q_bias", "attention.k_bias", "attention.v_bias")

_EMBEDDING = PackedRow(
    "embedding",
    ("embed_tokens",),
    0,
    "language_model/embedding/word_embeddings/weight",
    "embedding.word_embeddings.weight",
    "embedding.word_embeddings.weight",
)
BLOCK_ROWS = (
    # kind, ours, axis, legacy name, mcore name (local spec), mcore name (Transformer Engine)
    PackedRow(
        "attention_norm",
        ("attention_norm",),
        None,
        "input_norm.weight",
        "input_layernorm.weight",
        "self_attention.linear_qkv.layer_norm_weight",
    ),
    PackedRow(
        "attention_output",
        ("attention.o_proj",),
        1,
        "self_attention.dense.weight",
        "self_attention.linear_proj.weight",
        "self_attention.linear_proj.weight",
    ),
    PackedRow(
        "qkv",
        _ATTENTION,
        0,
        "self_attention.query_key_value.weight",
        "self_attention.linear_qkv.weight",
        "self_attention.linear_qkv.weight",
    ),
    PackedRow(
        "qkv_bias",
        _BIASES,
        0,
        "self_attention.query_key_value.bias",
        "self_attention.linear_qkv.bias",
        "self_attention.linear_qkv.bias",
    ),
    PackedRow(
        "mlp_norm",
        ("mlp_norm",),
        None,
        "post_attention_norm.weight",
        "pre_mlp_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight",
    ),
    PackedRow(
        "gate_up",
        ("mlp.gate_proj", "mlp.up_proj"),
        0,
        "mlp.dense_h_to_4h.weight",
        "mlp.linear_fc1.weight",
        "mlp.linear_fc1.weight",
    ),
    PackedRow(
        "down",
        ("mlp.down_proj",),
        1,
        "mlp.dense_4h_to_h.weight",
        "mlp.linear_fc2.weight",
        "mlp.linear_fc2.weight",
    ),
)
_FINAL_NORM = PackedRow(
    "final_norm",
    ("final_norm",),
    None,
    "language_model/encoder/final_norm.weight",
    "decoder.final_layernorm.weight",
    "decoder.final_layernorm.weight",
)
_HEAD = PackedRow(
    "head",
    ("lm_head",),
    0,
    "language_model/output_layer/weight",
    "output_layer.weight",
    "output_layer.weight",
)

# Megatron-LLaMA forked before the norms were renamed, and keeps its head elsewhere, undivided.
MEGATRON_LLAMA_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "final_norm": "language_model/encoder/final_layernorm.weight",
    "head": "lm_head/weight",
}


@dataclass(frozen=True)
class PackedTensor:
    """A stored tensor of one model: a row of the table in one naming, with its sizes."""

    row: PackedRow
    layer: int | None  # in the whole model; None outside the blocks
    config: ModelConfig
    naming: Naming
    qkv_order: QkvOrder

    @property
    def parts(self) -> tuple[str, ...]:
        """Our full names of what it holds, in order."""
        if self.layer is None:
            return self.row.parts
        return tuple(f"layers.{self.layer}.{part}" for part in self.row.parts)

    @property
    def split_axis(self) -> int | None:
        """The dimension divided over tensor parallel ranks."""
        if self.naming == "megatron_llama" and self.row.kind == "head":
            return None
        return self.row.split_axis

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the undivided stored tensor."""
        config = self.config
        hidden, width = config.hidden_size, config.width_per_head
        qkv = (config.num_heads + 2 * config.kv_heads) * width
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (config.vocab_rows, hidden),
            "attention_norm": (hidden,),
            "qkv": (qkv, hidden),
            "qkv_bias": (qkv,),
            "attention_output": (hidden, config.num_heads * width),
            "mlp_norm": (hidden,),
            "gate_up": (2 * config.intermediate_size, hidden),
            "down": (hidden, config.intermediate_size),
            "final_norm": (hidden,),
            "head": (config.vocab_rows, hidden),
        }
        return shapes[self.row.kind]

    def shard_shape(self, ranks: int) -> tuple[int, ...]:
        """Shape of each rank's part; the dimension must be divisible by `ranks`."""
        axis = self.split_axis
        if axis is None:
            return self.shape
        return (*self.shape[:axis], self.shape[axis] // ranks, *self.shape[axis + 1 :])

    def stored_name(self, local_layer: int | None) -> str:
        """Its name in a checkpoint file, nested keys joined by `/`.

        Args:
            local_layer: the block's number within its pipeline stage.
        """
        if self.naming == "megatron_llama":
            name = MEGATRON_LLAMA_NAMES.get(self.row.kind, self.row.legacy)
        else:
            name = getattr(self.row, self.naming)
        if self.layer is None:
            return name
        blocks = "decoder" if self.naming.startswith("mcore") else "language_model/encoder"
        separator = "." if self.naming.startswith("mcore") else "/"
        return f"{blocks}{separator}layers.{local_layer}.{name}"

    def pack(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The undivided stored tensor from ours (in torch's layout), in the order of `parts`."""
        if len(parts) == 1:
            return parts[0]
        if self.row.kind not in ("qkv", "qkv_bias") or self.qkv_order == "sections":
            return np.concatenate(parts)
        groups, width = self.config.kv_heads, self.config.width_per_head
        rest = parts[0].shape[1:]
        if self.qkv_order == "channels":
            return np.stack(parts, axis=1).reshape(-1, *rest)
        by_group = [part.reshape(groups, -1, width, *rest) for part in parts]
        return np.concatenate(by_group, axis=1).reshape(-1, *rest)

    def unpack(self, stored: np.ndarray) -> dict[str, np.ndarray]:
        """Ours (in torch's layout) by full name, from the undivided stored tensor."""
        if len(self.parts) == 1:
            return {self.parts[0]: stored}
        return dict(zip(self.parts, self._unpacked(stored), strict=True))

    def split(self, stored: np.ndarray, ranks: int) -> Iterator[np.ndarray]:
        """Each rank's part of the undivided tensor, one by one; views where possible.

        Raises:
            ValueError: the dimension is not divisible by `ranks`.
        """
        for rank in range(ranks):
            if self.split_axis is None:
                yield stored
                continue
            views = self._rank_views(stored, ranks, rank)
            yield views[0] if len(views) == 1 else np.concatenate(views, axis=self.split_axis)

    def join(self, shards: Iterable[np.ndarray], ranks: int) -> np.ndarray:
        """The undivided tensor from the ranks' parts, in order of rank, taken one by one."""
        if self.split_axis is None or ranks == 1:
            return next(iter(shards))
        stored: np.ndarray | None = None
        for rank, shard in enumerate(shards):
            if stored is None:
                stored = np.empty(joined_shape(shard.shape, self.split_axis, ranks), shard.dtype)
            views = self._rank_views(stored, ranks, rank)
            for view, part in zip(
                views, np.split(shard, len(views), axis=self.split_axis), strict=True
            ):
                view[...] = part
        assert stored is not None
        return stored

    def _rank_views(self, stored: np.ndarray, ranks: int, rank: int) -> list[np.ndarray]:
        """The parts of the undivided tensor that a rank stacks."""
        sections = np.split(stored, self._sections(), axis=self.split_axis or 0)
        return [np.split(section, ranks, axis=self.split_axis or 0)[rank] for section in sections]

    def _sections(self) -> int:
        """Blocks that a rank stacks, each of which is divided by itself."""
        in_sections = self.qkv_order == "sections" and self.row.kind in ("qkv", "qkv_bias")
        return len(self.row.parts) if self.row.kind == "gate_up" or in_sections else 1

    def _unpacked(self, stored: np.ndarray) -> list[np.ndarray]:
        rest = stored.shape[1:]
        if self.row.kind == "gate_up":
            return np.split(stored, 2)
        heads, groups, width = (
            self.config.num_heads,
            self.config.kv_heads,
            self.config.width_per_head,
        )
        if self.qkv_order == "sections":
            return np.split(stored, [heads * width, (heads + groups) * width])
        if self.qkv_order == "channels":
            by_channel = stored.reshape(-1, 3, *rest)
            return [by_channel[:, part] for part in range(3)]
        queries = heads // groups
        by_group = stored.reshape(groups, queries + 2, width, *rest)
        bounds = ((0, queries), (queries, queries + 1), (queries + 1, queries + 2))
        return [by_group[:, start:stop].reshape(-1, *rest) for start, stop in bounds]


def packed_tensors(
    config: ModelConfig, naming: Naming, qkv_order: QkvOrder = "groups"
) -> list[PackedTensor]:
    """Every stored tensor of a model, in Megatron's order, the embedding first, the head last."""
    block = [row for row in BLOCK_ROWS if config.qkv_bias or row.kind != "qkv_bias"]
    ends = [_FINAL_NORM] if config.tie_word_embeddings else [_FINAL_NORM, _HEAD]
    placed: list[tuple[PackedRow, int | None]] = [(_EMBEDDING, None)]
    placed += [(row, layer) for layer in range(config.num_layers) for row in block]
    placed += [(row, None) for row in ends]
    return [PackedTensor(row, layer, config, naming, qkv_order) for row, layer in placed]
