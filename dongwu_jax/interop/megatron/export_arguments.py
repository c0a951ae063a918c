"""The training arguments that an exported Megatron checkpoint carries."""

import argparse

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.megatron.stages import MegatronLayout, padded_vocab_size
from dongwu_jax.interop.torch_files.writer import GlobalName

OLD_ROTARY_BASE = 10000.0
"""The only one that the GPT class of 2023 knows."""


def export_arguments(
    config: ModelConfig,
    dtype: str,
    layout: MegatronLayout,
    padded_rows: int,
    iteration: int | None = None,
    consumed_samples: int = 0,
) -> argparse.Namespace:
    """All that Megatron compares with its command line, or takes from the file instead of it.

    Spellings of all its generations stand beside each other; each reads its own.

    Args:
        dtype: of the weights, "float32", "bfloat16" or "float16".
        padded_rows: of the embedding and the head; divisible by the tensor parallel ranks.
        iteration: steps done; None: weights without a history.
        consumed_samples: training samples used up, where Megatron goes on in the data.

    Raises:
        UserError: Megatron's arguments cannot express the model.
    """
    return argparse.Namespace(
        **_architecture(config, layout, padded_rows),
        **_positions(config, layout),
        **_parallelism(config, layout),
        **_code(layout),
        params_dtype=GlobalName("torch", dtype),
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        iteration=iteration or 0,
        consumed_train_samples=consumed_samples,
        consumed_valid_samples=0,
        skipped_train_samples=0,
        no_save_optim=True,
        no_save_rng=True,
        use_distributed_optimizer=False,
        tokenizer_type=None,  # these are taken from the file only when they are not None
        tokenizer_model=None,
        vocab_file=None,
        merge_file=None,
    )


def start_flags(config: ModelConfig) -> list[str]:
    """Flags with which Megatron must be started, because it does not take them from the file."""
    flags = [
        f"--norm-epsilon {config.rms_norm_eps:g}",
        f"--max-position-embeddings {config.max_position_embeddings}",
    ]
    if config.rope_theta != OLD_ROTARY_BASE:
        flags.append(f"--rotary-base {_whole_if_possible(config.rope_theta)}")
    if config.rope_scaling is not None:
        flags.append(f"--rotary-seq-len-interpolation-factor {config.rope_scaling.factor:g}")
    return flags


def _architecture(
    config: ModelConfig, layout: MegatronLayout, padded_rows: int
) -> dict[str, object]:
    grouped = config.kv_heads != config.num_heads
    return {
        "num_layers": config.num_layers,
        "encoder_num_layers": config.num_layers,
        "decoder_num_layers": None,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "group_query_attention": grouped,
        "num_query_groups": config.kv_heads if grouped else 1,
        "kv_channels": config.width_per_head,
        "vocab_size": config.vocab_size,
        "orig_vocab_size": config.vocab_size,
        "padded_vocab_size": padded_rows,
        "make_vocab_size_divisible_by": _vocabulary_divisor(config, layout, padded_rows),
        "normalization": "RMSNorm",
        "norm_epsilon": config.rms_norm_eps,
        "layernorm_epsilon": config.rms_norm_eps,
        "apply_layernorm_1p": False,
        "layernorm_zero_centered_gamma": False,
        "apply_residual_connection_post_layernorm": False,
        "qk_layernorm": False,
        "swiglu": True,
        "squared_relu": False,
        "openai_gelu": False,
        "add_bias_linear": False,
        "add_qkv_bias": config.qkv_bias,
        "untie_embeddings_and_output_weights": not config.tie_word_embeddings,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method_std": config.initializer_range,
        "num_experts": None,
        "multi_latent_attention": False,
    }


def _positions(config: ModelConfig, layout: MegatronLayout) -> dict[str, object]:
    length = config.max_position_embeddings
    return {
        "seq_length": length,
        "encoder_seq_length": length,
        "decoder_seq_length": None,
        "max_position_embeddings": length,
        "position_embedding_type": "rope",
        "use_rotary_position_embeddings": True,
        # compared with the command line: its default, except in the fork's scripts
        "add_position_embedding": layout.naming != "megatron_llama",
        "rotary_base": _whole_if_possible(config.rope_theta),
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "rotary_seq_len_interpolation_factor": _interpolation_factor(config),
        "use_rope_scaling": False,
    }


def _parallelism(config: ModelConfig, layout: MegatronLayout) -> dict[str, object]:
    stages, chunks = layout.pipeline_parallel, layout.virtual_pipeline
    virtual = chunks > 1
    return {
        "tensor_model_parallel_size": layout.tensor_parallel,
        "pipeline_model_parallel_size": stages,
        "transformer_pipeline_model_parallel_size": stages,
        "virtual_pipeline_model_parallel_size": chunks if virtual else None,
        "num_layers_per_virtual_pipeline_stage": (
            config.num_layers // (stages * chunks) if virtual else None
        ),
        "pipeline_model_parallel_split_rank": None,
        "data_parallel_size": 1,
        "context_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "expert_tensor_parallel_size": layout.tensor_parallel,
        "sequence_parallel": False,
        "world_size": layout.tensor_parallel * stages,
        "rank": 0,
    }


def _code(layout: MegatronLayout) -> dict[str, object]:
    """Which of Megatron's model classes the names belong to."""
    mcore = layout.naming.startswith("mcore")
    return {
        "use_mcore_models": mcore,
        "use_legacy_models": not mcore,
        "transformer_impl": "transformer_engine" if layout.naming == "mcore_te" else "local",
        "ckpt_format": "torch",
        "use_dist_ckpt": False,
    }


def _interpolation_factor(config: ModelConfig) -> int | None:
    if config.rope_scaling is None:
        return None
    if config.rope_scaling.type != "linear":
        raise UserError(
            f"rope_scaling.type={config.rope_scaling.type}: Megatron's arguments know only linear"
        )
    if not config.rope_scaling.factor.is_integer():
        raise UserError(
            f"rope_scaling.factor={config.rope_scaling.factor:g}: Megatron's "
            "--rotary-seq-len-interpolation-factor is a whole number"
        )
    return int(config.rope_scaling.factor)


def _whole_if_possible(value: float) -> int | float:
    """Megatron's `--rotary-base` is a whole number."""
    return int(value) if value.is_integer() else value


def _vocabulary_divisor(config: ModelConfig, layout: MegatronLayout, padded: int) -> int:
    """The divisor from which Megatron's rule gives the padded size; its default where possible."""
    ranks = layout.tensor_parallel
    candidates = (128, 1, padded // ranks)
    return next(d for d in candidates if padded_vocab_size(config.vocab_size, d, ranks) == padded)
