"""Hugging Face `config.json` <-> ModelConfig, in the spellings of transformers 4 and 5."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.sections import RopeScaling
from dongwu_jax.errors import UserError

Json = dict[str, Any]

_SUPPORTED = ("llama", "mistral", "qwen2")


def read_json(path: Path) -> Json:
    """A JSON object from a file.

    Raises:
        UserError: the file is missing, is not JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is not JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply; copy the file again") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise UserError(f"{path}: holds a number that is too long: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    return content


def read_hugging_face_config(path: Path) -> ModelConfig:
    """The architecture that a `config.json` describes.

    Raises:
        UserError: a field is missing, or asks for something that a Llama of ours cannot do.
    """
    return parse_hugging_face_config(read_json(path), path)


def parse_hugging_face_config(fields: Json, path: Path) -> ModelConfig:
    """The architecture that the content of the `config.json` at `path` describes.

    Raises:
        UserError: as `read_hugging_face_config`.
    """
    _check_supported(fields, path)
    theta, scaling = _read_rope(fields, path)
    length = _required(fields, "max_position_embeddings", path)
    if scaling is not None:  # written by convention before scaling; the extended length beside it
        length = fields.get("max_sequence_length") or _scaled(length, scaling.factor, path)
    settings = {
        "vocab_size": _required(fields, "vocab_size", path),
        "hidden_size": _required(fields, "hidden_size", path),
        "intermediate_size": _required(fields, "intermediate_size", path),
        "num_layers": _required(fields, "num_hidden_layers", path),
        "num_heads": _required(fields, "num_attention_heads", path),
        "num_kv_heads": fields.get("num_key_value_heads"),
        "head_dim": fields.get("head_dim"),
        "max_position_embeddings": length,
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

    The rope settings stand both at the top level (transformers 4, vLLM) and in `rope_parameters`
    (transformers 5): a reader that finds only the other's spelling silently uses its defaults. With
    linear scaling `max_position_embeddings` is the length before scaling, because vLLM multiplies
    it by the factor; the factor is always a float, because vLLM fails on an integer.

    Args:
        dtype: format in which the weights are stored, by name.
        token_ids: `bos_token_id`, `eos_token_id` and the like.
    """
    rope: Json = {"rope_type": "default"}
    length = config.max_position_embeddings
    if config.rope_scaling is not None:
        factor = float(config.rope_scaling.factor)
        rope = {"rope_type": config.rope_scaling.type, "factor": factor}
        length = -int(-length // factor)
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
        "max_position_embeddings": length,
        "max_sequence_length": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
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
    if "quantization_config" in fields:
        raise UserError(
            f"{path}: quantization_config: quantized weights cannot be read; "
            "use the model before quantization"
        )
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


def _read_rope(fields: Json, path: Path) -> tuple[float, RopeScaling | None]:
    """Base and scaling of rotary positions; `rope_scaling` wins, as in transformers."""
    parameters = fields.get("rope_parameters") or {}
    scaling = fields.get("rope_scaling") or parameters
    if not isinstance(scaling, dict) or not isinstance(parameters, dict):
        raise UserError(f"{path}: rope_scaling and rope_parameters must be JSON objects or null")
    theta = _first_given("rope_theta", scaling, parameters, fields, default=10000.0)
    rotated = _first_given("partial_rotary_factor", scaling, parameters, fields, default=1.0)
    if rotated != 1.0:
        raise UserError(f"{path}: partial_rotary_factor={rotated}; only whole heads are rotated")
    factor = scaling.get("factor")
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind is None and factor is not None:
        raise UserError(
            f"{path}: rope_scaling.factor={factor!r} has no rope_type beside it; "
            "add one, such as 'linear'"
        )
    if kind in (None, "default"):
        return theta, None
    if kind != "linear":
        raise UserError(
            f"{path}: rope_scaling.rope_type={kind!r}; only 'default' and 'linear' are supported"
        )
    try:
        return theta, RopeScaling(type="linear", factor=factor)
    except ValidationError:
        raise UserError(
            f"{path}: rope_scaling.factor={factor!r} must be a finite number of at least 1"
        ) from None


def _scaled(length: int, factor: float, path: Path) -> int:
    try:
        return round(length * factor)
    except OverflowError:
        raise UserError(
            f"{path}: max_position_embeddings times rope_scaling.factor={factor:g} is not a length "
            "that a model can have"
        ) from None


def _first_given(name: str, *places: Json, default: float) -> float:
    given = (place[name] for place in places if place.get(name) is not None)
    return next(given, default)
