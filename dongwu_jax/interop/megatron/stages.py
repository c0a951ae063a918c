"""Which layers a pipeline stage holds, and how ranks and stages divide a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.megatron.tensors import Naming

Chunk = tuple[int, int]
"""Pipeline stage, and the number of a chunk of layers within it (virtual pipeline)."""


@dataclass(frozen=True)
class MegatronLayout:
    """How a model is named and divided in the torch format."""

    naming: Naming = "mcore_te"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    virtual_pipeline: int = 1  # chunks of layers in each stage

    @property
    def last_chunk(self) -> Chunk:
        """The one with the final norm and the head."""
        return self.pipeline_parallel - 1, self.virtual_pipeline - 1

    def layers(self, num_layers: int, chunk: Chunk) -> range:
        """The layers that a chunk holds, numbered in the whole model."""
        stage, number = chunk
        size = num_layers // (self.pipeline_parallel * self.virtual_pipeline)
        start = size * (number * self.pipeline_parallel + stage)
        return range(start, start + size)


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel: int) -> int:
    """Rows of Megatron's embedding: the next multiple of `divisible_by` x `tensor_parallel`."""
    multiple = divisible_by * tensor_parallel
    return -(-vocab_size // multiple) * multiple


def first_layers(counts: Mapping[Chunk, int]) -> dict[Chunk, int]:
    """Number in the whole model of each chunk's first layer, from the layers that chunks hold.

    Chunk 0 of every stage comes first, then chunk 1 of every stage. Counting, instead of dividing,
    holds for pipelines whose stages differ in size too.
    """
    first, total = {}, 0
    for chunk in sorted(counts, key=lambda chunk: (chunk[1], chunk[0])):
        first[chunk] = total
        total += counts[chunk]
    return first


def check_layout(config: ModelConfig, layout: MegatronLayout, padded_vocab_size: int) -> None:
    """Refuse a model that Megatron could not hold in this layout.

    Raises:
        UserError: a size does not divide, or the naming has no place for a part of the model.
    """
    _check_sizes(layout)
    _check_stages(config, layout)
    _check_ranks(config, layout, padded_vocab_size)
    if layout.naming == "megatron_llama":
        _check_megatron_llama(config)


def _check_sizes(layout: MegatronLayout) -> None:
    for field in ("tensor_parallel", "pipeline_parallel", "virtual_pipeline"):
        if getattr(layout, field) < 1:
            raise UserError(f"{field}={getattr(layout, field)}: must be at least 1")


def _check_stages(config: ModelConfig, layout: MegatronLayout) -> None:
    chunks = layout.pipeline_parallel * layout.virtual_pipeline
    if config.num_layers % chunks:
        raise UserError(
            f"num_layers={config.num_layers} is not divisible by pipeline_parallel="
            f"{layout.pipeline_parallel} x virtual_pipeline={layout.virtual_pipeline}; "
            "choose other numbers"
        )


def _check_ranks(config: ModelConfig, layout: MegatronLayout, padded_vocab_size: int) -> None:
    ranks = layout.tensor_parallel
    if padded_vocab_size < config.vocab_size:
        raise UserError(
            f"padded_vocab_size={padded_vocab_size} is smaller than the vocabulary, "
            f"{config.vocab_size} tokens"
        )
    sizes = {
        "num_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_size": config.hidden_size,
        "padded_vocab_size": padded_vocab_size,
    }
    if layout.naming.startswith("mcore"):  # may divide a group of heads, gathered at run time
        rows = (config.num_heads + 2 * config.kv_heads) * config.width_per_head
        sizes["rows of query, key and value"] = rows
    else:
        sizes["num_kv_heads"] = config.kv_heads
    for name, size in sizes.items():
        if size % ranks:
            raise UserError(
                f"{name}={size} is not divisible by tensor_parallel={ranks}; "
                "choose a smaller tensor_parallel"
            )
    if config.kv_heads % ranks and ranks % config.kv_heads:
        raise UserError(
            f"num_kv_heads={config.kv_heads} and tensor_parallel={ranks}: one must be a multiple "
            "of the other; choose another tensor_parallel"
        )


def _check_megatron_llama(config: ModelConfig) -> None:
    """Alibaba's fork has one kind of attention and always a head."""
    impossible = {
        f"num_kv_heads={config.kv_heads} (grouped queries)": config.kv_heads != config.num_heads,
        "tied embeddings": config.tie_word_embeddings,
        "biases of query, key and value": config.qkv_bias,
        "a head_dim other than hidden_size / num_heads": (
            config.width_per_head * config.num_heads != config.hidden_size
        ),
        f"rope_theta={config.rope_theta:g}": config.rope_theta != 10000.0,
        "rope scaling": config.rope_scaling is not None,
    }
    for what, present in impossible.items():
        if present:
            raise UserError(f"naming megatron_llama: Megatron-LLaMA does not know {what}")
