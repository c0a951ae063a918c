"""Folders of 8-bit weights that are read: what they give, and what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from quantized_models import KINDS, quantized_export
from reference_models import change_weights

from dongwu_jax.errors import UserError
from dongwu_jax.interop.quantization import QUANTIZATIONS, dequantize, quantize
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.tensors import model_tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_it_is_read_back(quantization, kind, tmp_path):
    source, folder = quantized_export(tmp_path, kind, quantize=quantization, max_shard_bytes=9000)
    back = open_source(folder)
    assert back.config == source.config
    assert back.dtype == "float32"
    assert quantization in back.description
    (note,) = back.notes
    assert "activations" in note
    for tensor in model_tensors(source.config):
        original, found = source.read(tensor.name), back.read(tensor.name)
        assert found.dtype == np.float32
        if tensor.layer is not None and "proj" in tensor.name:
            expected = dequantize(*quantize(tensor.to_torch(original), quantization, "w"))
            np.testing.assert_array_equal(tensor.to_torch(found), expected)
            assert not np.array_equal(found, original)
        else:
            np.testing.assert_array_equal(found, original)


def test_what_is_not_quantized_keeps_its_dtype(tmp_path):
    _, folder = quantized_export(tmp_path, dtype="bfloat16", quantize="int8")
    back = open_source(folder)
    assert back.dtype == "float32"
    assert back.read("embed_tokens").dtype == ml_dtypes.bfloat16
    assert len(back.notes) == 1
    stored = {name: (shape, dtype) for name, shape, dtype in back.stored()}
    name = "model.layers.1.mlp.up_proj.weight"
    assert stored[name] == ((56, 32), "int8")
    assert stored[f"{name}_scale"] == ((56, 1), "bfloat16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: t.pop(f"{n}_scale"), "up_proj.weight is stored as int8, .*_scale is missing"),
        (
            lambda t, n: t.update({f"{n}_scale": np.ones((1,), np.float32)}),
            r"up_proj.weight_scale is float32 \(1,\); only .* \(56, 1\)",
        ),
        (
            lambda t, n: t.update({f"{n}_scale": np.ones((56, 1), np.int32)}),
            "up_proj.weight_scale is int32",
        ),
        (
            lambda t, n: t.update({n: np.ones((56, 32), np.uint8)}),
            "up_proj.weight is stored as uint8",
        ),
        (
            lambda t, n: t.update({n: np.ones((56, 32), np.float32)}),
            "up_proj.weight_scale has no place",
        ),
        (
            lambda t, n: t.update({"model.norm.weight": np.ones(32, np.int8)}),
            "model.norm.weight is stored as int8",
        ),
        (
            lambda t, n: t.update({f"{n}_zero_point": np.zeros((56, 1), np.int8)}),
            "zero_point is stored as int8, .*_scale is missing",
        ),
    ],
)
def test_damaged_tensors_are_refused(change, message, tmp_path):
    _, folder = quantized_export(tmp_path, quantize="int8")
    change_weights(folder, lambda tensors: change(tensors, "model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=f"model.safetensors: tensor .*{message}"):
        open_source(folder)


def test_8_bits_without_a_word_in_the_config_are_refused(tmp_path):
    _, folder = quantized_export(tmp_path, quantize="fp8")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is stored as float8_e4m3fn; only"):
        open_source(folder)
