"""The quantization_config of a folder: what others write, and what is refused."""

import json
from pathlib import Path

import pytest
from quantized_models import quantized_export

from dongwu_jax.errors import UserError
from dongwu_jax.interop.sources import open_source


def _changed_config(folder: Path, place: str, value: object) -> None:
    """Set one field of the quantization_config; dots lead to nested ones."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    *parents, last = place.split(".")
    section = config["quantization_config"]
    for name in parents:
        section = section[name]
    section[last] = value
    path.write_text(json.dumps(config))


_GROUP = "config_groups.group_0"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("quant_method", "gptq"),
        ("format", "pack-quantized"),
        ("format", ["int-quantized"]),
        ("kv_cache_scheme", {"num_bits": 8}),
        ("sparsity_config", {"format": "sparse-24-bitmask"}),
        ("transform_config", {"config_groups": {}}),
        ("config_groups", ["FP8_DYNAMIC"]),
        (_GROUP, ["Linear"]),
        (f"{_GROUP}.weights", None),
        (f"{_GROUP}.weights.num_bits", 4),
        (f"{_GROUP}.weights.type", "float"),
        (f"{_GROUP}.weights.strategy", "block"),
        (f"{_GROUP}.weights.strategy", "group"),
        (f"{_GROUP}.weights.strategy", "tensor"),
        (f"{_GROUP}.weights.symmetric", False),
        (f"{_GROUP}.input_activations", None),
        (f"{_GROUP}.input_activations.dynamic", False),
        (f"{_GROUP}.input_activations.dynamic", "local"),
        (f"{_GROUP}.input_activations.strategy", "tensor"),
        (f"{_GROUP}.output_activations", {"num_bits": 8}),
    ],
)
def test_other_quantizations_are_refused(place, value, tmp_path):
    _, folder = quantized_export(tmp_path, quantize="int8")
    _changed_config(folder, place, value)
    with pytest.raises(UserError) as error:
        open_source(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / 'config.json'}: quantization_config.{place}")
    assert repr(value) in message


def test_what_tools_add_to_the_config_changes_nothing(tmp_path):
    _, folder = quantized_export(tmp_path, quantize="int8")
    weights = {"observer": "minmax", "group_size": None, "block_structure": None}
    for name, value in weights.items():
        _changed_config(folder, f"{_GROUP}.weights.{name}", value)
    added = {"sparsity_config": {}, "transform_config": {}, "kv_cache_scheme": None}
    for name, value in added.items():
        _changed_config(folder, name, value)
    assert open_source(folder).notes
