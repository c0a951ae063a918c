"""The cases of `train_step.py`: slices of Llama models at their true width, on one GPU of 80 GB."""

from dataclasses import dataclass, field
from typing import Any

from dongwu_jax.config import RunConfig, overlay, parse_config

# Width, feed-forward and heads of a model, and layers of which every case fits with their state.
SLICES: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_heads": 32, "num_layers": 6},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_heads": 40, "num_layers": 4},
    "65b": {"hidden_size": 8192, "intermediate_size": 21824, "num_heads": 64, "num_layers": 2},
    "132b": {"hidden_size": 12288, "intermediate_size": 32768, "num_heads": 96, "num_layers": 1},
}
ACCUMULATION_STEPS = 4


@dataclass(frozen=True)
class Case:
    """A training step to time.

    Args:
        slice: a key of `SLICES`.
        rows: sequences in a micro batch.
        peer_checkpointing: whether PyTorch computes its blocks again in the backward pass.
        layers: instead of the slice's own number.
        settings: of our run beyond these.
    """

    slice: str = "13b"
    sequence_length: int = 4096
    rows: int = 2
    remat: str = "none"
    vocab_size: int = 32000
    peer_checkpointing: bool = False
    layers: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> dict[str, int]:
        """Sizes of the model."""
        shape = SLICES[self.slice] | {"vocab_size": self.vocab_size}
        return shape | ({"num_layers": self.layers} if self.layers else {})

    def config(self) -> RunConfig:
        """Our run on one GPU."""
        training = {
            "micro_batch_size": self.rows,
            "global_batch_size": ACCUMULATION_STEPS * self.rows,
            "duration": 1000,
            "remat": self.remat,
        }
        sections = {
            "model": self.shape | {"max_position_embeddings": self.sequence_length},
            "data": {"sequence_length": self.sequence_length},
            "training": training,
        }
        return parse_config(overlay(sections, self.settings), f"case {self}")

    def peer(self) -> dict[str, int]:
        """What the PyTorch step is told."""
        return self.shape | {
            "sequence_length": self.sequence_length,
            "rows": self.rows,
            "accumulation_steps": ACCUMULATION_STEPS,
            "checkpointing": int(self.peer_checkpointing),
        }


_CHUNKED = {"training": {"loss_chunk_tokens": 4096}}
_FP8 = {"precision": {"matmul": "fp8"}}

CASES: dict[str, Case] = {
    "13b": Case(),
    "7b": Case("7b"),
    "65b": Case("65b"),
    "132b": Case("132b", rows=1),
    "13b_2048": Case(sequence_length=2048, rows=4),
    "13b_minimal": Case(remat="minimal", peer_checkpointing=True),
    "13b_qkv_attention": Case(remat="qkv_attention", peer_checkpointing=True),
    "13b_attention": Case(remat="attention", peer_checkpointing=True),
    "13b_full": Case(remat="full", peer_checkpointing=True),
    "13b_32k_attention": Case(
        sequence_length=32768, rows=1, remat="attention", peer_checkpointing=True
    ),
    "13b_32k_full": Case(sequence_length=32768, rows=1, remat="full", peer_checkpointing=True),
    "13b_offload": Case(remat="offload", peer_checkpointing=True),
    "13b_32k_offload": Case(
        sequence_length=32768, rows=1, remat="offload", peer_checkpointing=True
    ),
    "13b_vocab125696": Case(vocab_size=125_696, layers=3),
    "13b_32k_vocab125696": Case(
        sequence_length=32768,
        rows=1,
        remat="full",
        vocab_size=125_696,
        layers=3,
        peer_checkpointing=True,
        settings=_CHUNKED,
    ),
    "13b_fp8": Case(settings=_FP8),
    "13b_scan": Case(settings={"training": {"scan_layers": True}}),
    "13b_bf16_sum": Case(settings={"precision": {"grad_accumulation_dtype": "bfloat16"}}),
    "13b_bf16_moment": Case(settings={"optimizer": {"first_moment_dtype": "bfloat16"}}),
}
