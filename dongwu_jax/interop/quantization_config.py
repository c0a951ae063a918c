"""How the weights of a Hugging Face folder are quantized, in the words of compressed-tensors."""

from pathlib import Path
from typing import Any, NoReturn

from dongwu_jax.errors import UserError
from dongwu_jax.interop.quantization import QUANTIZATIONS, Quantization

Json = dict[str, Any]

_FORMATS: dict[Quantization, str] = {"fp8": "float-quantized", "int8": "int-quantized"}
_TYPES: dict[Quantization, str] = {"fp8": "float", "int8": "int"}
_UNUSED = ("kv_cache_scheme", "sparsity_config", "transform_config")


def quantization_config(quantization: Quantization) -> Json:
    """The `quantization_config` of a `config.json`: every Linear but the head is quantized."""
    scheme = {"targets": ["Linear"], **_scheme(quantization)}
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMATS[quantization],
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }


def read_quantization_config(fields: Json, path: Path) -> Quantization | None:
    """How the weights beside a `config.json` are quantized; None: they are not.

    Which of them are is told by the tensors themselves, so `targets` and `ignore` may say anything.

    Args:
        fields: the content of the `config.json`.

    Raises:
        UserError: they are quantized in a way that cannot be read.
    """
    found = fields.get("quantization_config")
    if found is None:
        return None
    where = f"{path}: quantization_config"
    found = _object(found, where)
    _check(found, {"quant_method": "compressed-tensors"}, where)
    quantization = next((q for q in QUANTIZATIONS if _FORMATS[q] == found.get("format")), None)
    if quantization is None:
        _refuse(where, "format", found, " and ".join(map(repr, _FORMATS.values())))
    for name in _UNUSED:
        if found.get(name):
            _refuse(where, name, found, "null")
    groups = _object(found.get("config_groups"), f"{where}.config_groups")
    for name, group in groups.items():
        _check_group(group, quantization, f"{where}.config_groups.{name}")
    return quantization


def _scheme(quantization: Quantization) -> Json:
    """The parts of a group that can be read, and that are written."""
    numbers = {"num_bits": 8, "type": _TYPES[quantization], "symmetric": True}
    return {
        "weights": {**numbers, "strategy": "channel", "dynamic": False},
        "input_activations": {**numbers, "strategy": "token", "dynamic": True},
        "output_activations": None,
    }


def _check_group(group: Any, quantization: Quantization, where: str) -> None:
    group = _object(group, where)
    for name, expected in _scheme(quantization).items():
        if expected is None:
            _check(group, {name: None}, where)
        else:
            _check(_object(group.get(name), f"{where}.{name}"), expected, f"{where}.{name}")


def _object(value: Any, where: str) -> Json:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a JSON object, not {value!r}")
    return value


def _check(found: Json, expected: Json, where: str) -> None:
    for name, value in expected.items():
        if found.get(name) != value:
            _refuse(where, name, found, repr(value))


def _refuse(where: str, name: str, found: Json, readable: str) -> NoReturn:
    raise UserError(
        f"{where}.{name}={found.get(name)!r}; only {readable} can be read: use the model before "
        "quantization"
    )
