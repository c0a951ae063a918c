"""Hugging Face `config.json` <-> ModelConfig, in the spellings of transformers 4 and 5."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.hf_rope import read_rope, write_rope
from dongwu_jax.interop.quantization_config import read_quantization_config

Json = dict[str, Any]

_SUPPORTED = ("llama", "mistral", "qwen2")


def parse_hugging_face_config(fields: Json, path: Path) -> ModelConfig:
    """The architecture that the content of the `config.json` at `path` describes.

    Raises:
        UserError: a field is missing, or asks for something that a Llama of ours cannot do.
    """
    _check_supported(fields, path)
    length = _required(fields, "max_position_embeddings", path)
    theta, scaling, extended = read_rope(fields, length, path)
    settings = {
        "vocab_size": _required(fields, "vocab_size", path),
        "hidden_size": _required(fields, "hidden_size", path),
        "intermediate_size": _required(fields, "intermediate_size", path),
        "num_layers": _required(fields, "num_hidden_layers", path),
        "num_heads": _required(fields, "num_attention_heads", path),
        "num_kv_heads": fields.get("num_key_value_heads"),
        "head_dim": fields.get("head_dim"),
        "max_position_embeddings": extended,
        "rms_norm_eps": fields.get("rms_norm_eps", 1e-6),  # the default of transformers
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": fields.get("tie_word_embeddings", False),
        "qkv_bias": fields["model_type"] == "qwen2" or fields.get("attention_bias", False),
        "initializer_range": fields.get("initializer_range", 0.02),
    }
    try:
        return ModelConfig.model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the sizes"
        raise UserError(
            f"{path}: {where}: {problem['msg'].removeprefix('Value error, ')}"
        ) from None


def hugging_face_config(config: ModelConfig, dtype: str, token_ids: Json) -> Json:
    """The `config.json` of an exported model.

    Args:
        dtype: format in which the weights are stored, by name.
        token_ids: `bos_token_id`, `eos_token_id` and the like.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width_per_head,
        "hidden_act": "silu",
        **write_rope(config),
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.qkv_bias,
        "mlp_bias": False,
        "initializer_range": config.initializer_range,
        **token_ids,
        "use_cache": True,
    }


def _required(fields: Json, name: str, path: Path) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{path}: {name} must be a whole number, not {value!r}")
    return value


def _check_supported(fields: Json, path: Path) -> None:
    """Refuse what would load and compute something else."""
    kind = fields.get("model_type")
    if kind not in _SUPPORTED:
        raise UserError(
            f"{path}: model_type={kind!r} is not a Llama; supported: {', '.join(_SUPPORTED)}"
        )
    read_quantization_config(fields, path)
    if fields.get("hidden_act", "silu") != "silu":
        raise UserError(f"{path}: hidden_act={fields['hidden_act']!r}; only 'silu' is supported")
    if fields.get("mlp_bias"):
        raise UserError(f"{path}: mlp_bias=true; biases in the feed-forward are not supported")
    # A Mistral config without the key means a window of 4096.
    if kind == "mistral" and fields.get("sliding_window", 4096) is not None:
        window = fields.get("sliding_window", "missing (4096)")
        raise UserError(f"{path}: sliding_window={window}; attention over a window is unsupported")
    if kind == "qwen2" and fields.get("use_sliding_window"):
        raise UserError(f"{path}: use_sliding_window=true; attention over a window is unsupported")
