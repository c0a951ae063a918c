"""The beginning of a GGUF file of a Llama model, by the format's own package."""

from pathlib import Path

import gguf

from dongwu_jax.config import ModelConfig


def llama_writer(path: Path, config: ModelConfig) -> gguf.GGUFWriter:
    """A writer that knows the model's shape; tokenizer and tensors are the caller's."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    return writer
