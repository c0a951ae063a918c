"""Rotary positions in a Hugging Face `config.json`, in the spellings of transformers 4 and 5."""

import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.errors import UserError
from dongwu_jax.models.rope_frequencies import original_length, with_new_base

Json = dict[str, Any]

# Settings beside the factor, by type; ours have the same names.
_SETTINGS: dict[str, tuple[str, ...]] = {
    kind: names for kind, names in RopeScaling.OF_TYPE.items() if kind != "ntk"
}


def read_rope(fields: Json, length: int, path: Path) -> tuple[float, RopeScaling | None, int]:
    """Base and scaling of rotary positions, and the length with it.

    `rope_scaling` wins over `rope_parameters`, as in transformers. With linear scaling, and where
    no original length stands beside the factor, `max_position_embeddings` is the length before it.

    Args:
        length: `max_position_embeddings`.

    Raises:
        UserError: something is missing or unknown to us.
    """
    parameters = fields.get("rope_parameters") or {}
    scaling = fields.get("rope_scaling") or parameters
    if not isinstance(scaling, dict) or not isinstance(parameters, dict):
        raise UserError(f"{path}: rope_scaling and rope_parameters must be JSON objects or null")
    theta = _first_given("rope_theta", scaling, parameters, fields, default=10000.0)
    rotated = _first_given("partial_rotary_factor", scaling, parameters, fields, default=1.0)
    if rotated != 1.0:
        raise UserError(f"{path}: partial_rotary_factor={rotated}; only whole heads are rotated")
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if kind is None and factor is not None:
        raise UserError(
            f"{path}: rope_scaling.factor={factor!r} has no rope_type beside it; "
            "add one, such as 'linear'"
        )
    if kind in (None, "default"):
        return theta, None, length
    if not isinstance(kind, str) or kind not in _SETTINGS:
        raise UserError(
            f"{path}: rope_scaling.rope_type={kind!r:.80}; only 'default', "
            f"{', '.join(map(repr, _SETTINGS))} are supported"
        )
    told = {name: scaling[name] for name in _SETTINGS[kind] if scaling.get(name) is not None}
    if kind == "yarn":
        told |= _attention_factor(scaling, factor, path)
    if kind != "linear" and fields.get("original_max_position_embeddings") is not None:
        told["original_max_position_embeddings"] = fields["original_max_position_embeddings"]
    extended = "original_max_position_embeddings" in told
    if kind != "linear" and not extended:
        told["original_max_position_embeddings"] = length
    read = _checked({"type": kind, "factor": factor, **told}, path)
    if extended:
        return theta, read, length
    return theta, read, fields.get("max_sequence_length") or _scaled(length, read.factor, path)


def write_rope(config: ModelConfig) -> Json:
    """Every field of a `config.json` that says where positions lie.

    Both spellings: a reader that finds only the other's silently uses its defaults. With linear
    scaling `max_position_embeddings` is the length before scaling, because vLLM multiplies it by
    the factor; otherwise it is the extended length. The factor is always a float, because vLLM
    fails on an integer.
    """
    config = with_new_base(config)
    scaling, length = config.rope_scaling, config.max_position_embeddings
    rope: Json = {"rope_type": "default"}
    if scaling is not None:
        rope = {"rope_type": scaling.type, "factor": float(scaling.factor)}
        if scaling.type == "linear":
            length = -int(-length // scaling.factor)
        else:
            settings = {name: getattr(scaling, name) for name in _SETTINGS[scaling.type]}
            settings["original_max_position_embeddings"] = original_length(config)
            if settings.get("truncate"):
                del settings["truncate"]  # what old readers do, and they know no such word
            rope |= {name: value for name, value in settings.items() if value is not None}
    return {
        "max_position_embeddings": length,
        "max_sequence_length": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
    }


def _attention_factor(scaling: Json, factor: Any, path: Path) -> Json:
    """DeepSeek's spelling of YaRN's attention factor, as the factor itself."""
    scales: list[Any] = [scaling.get("mscale"), scaling.get("mscale_all_dim")]
    if scaling.get("attention_factor") is not None or not all(scales):
        return {}
    if not all(isinstance(number, int | float) for number in (*scales, factor)) or factor < 1:
        raise UserError(
            f"{path}: rope_scaling: factor={factor!r}, mscale={scales[0]!r} and "
            f"mscale_all_dim={scales[1]!r} must be numbers, the factor at least 1"
        )
    own, all_dimensions = (0.1 * scale * math.log(factor) + 1 for scale in scales)
    return {"attention_factor": own / all_dimensions}


def _checked(settings: Json, path: Path) -> RopeScaling:
    try:
        return RopeScaling.model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        if name == "factor":
            raise UserError(
                f"{path}: rope_scaling.factor={settings['factor']!r} must be a finite number of at "
                "least 1"
            ) from None
        value = f".{name}={settings.get(name)!r}" if name else ""
        message = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: rope_scaling{value}: {message}") from None


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
