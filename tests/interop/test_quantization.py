"""8-bit weights: how far they are from the originals, and the folders that hold them."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from conversions import convert_to
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from reference_models import (
    TINY,
    our_logits,
    random_llama,
    random_tokens,
    save,
    smollm2_file,
    transformers_logits,
)
from safetensors.numpy import load_file, save_file

from dongwu_jax.errors import UserError
from dongwu_jax.interop.conversion import TargetOptions, check_folder, make_target
from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.quantization import (
    QUANTIZATIONS,
    QUANTIZED_DTYPES,
    SCALE_DTYPE,
    dequantize,
    quantize,
)
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.tensors import model_tensors

KINDS = {
    "untied": {},
    "tied, grouped": {"tie_word_embeddings": True, "num_key_value_heads": 2},
    "biases": {"attention_bias": True, "num_key_value_heads": 1},
    "odd sizes": {
        "hidden_size": 33,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "intermediate_size": 57,
    },
}
_LARGEST = {"int8": 127.0, "fp8": 448.0}

_shapes = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)
_weights = arrays.arrays(
    np.float32, _shapes, elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=True)
)
_scales = st.floats(2.0**-20, 2.0**20).map(lambda value: SCALE_DTYPE.type(value))


def _error_bound(weight, values, scale, quantization):
    """Half the distance of neighbouring 8-bit values, where the weight lies."""
    if quantization == "int8":
        return scale / 2 * np.ones_like(weight)
    return np.maximum(np.abs(weight) * 2.0**-4, scale * 2.0**-10)  # normal, subnormal


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@given(_weights)
def test_every_value_is_the_nearest(quantization, weight):
    values, scale = quantize(weight, quantization, "w")
    assert (values.dtype, scale.dtype) == (QUANTIZED_DTYPES[quantization], SCALE_DTYPE)
    assert (values.shape, scale.shape) == (weight.shape, (len(weight), 1))
    found = dequantize(values, scale)
    assert found.dtype == np.float32
    exact, wide = weight.astype(np.float64), scale.astype(np.float64)
    bound = _error_bound(exact, values, wide, quantization)
    assert (np.abs(exact - found) <= bound * (1 + 1e-5) + 1e-44).all()
    assert (np.sign(found) * np.sign(exact) >= 0).all()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@given(data=st.data())
def test_what_8_bits_hold_is_kept(quantization, data):
    """Also when a folder that was read back is quantized again."""
    bits = data.draw(arrays.arrays(np.uint8, _shapes))
    values = bits.view(QUANTIZED_DTYPES[quantization]).astype(np.float32)
    values = np.nan_to_num(values).clip(-127 if quantization == "int8" else -448, None)
    values[:, 0] = _LARGEST[quantization]  # otherwise another scale suits the row better
    scale = np.array([[data.draw(_scales)] for _ in values], SCALE_DTYPE)
    again, same = quantize(dequantize(values, scale), quantization, "w")
    np.testing.assert_array_equal(again.astype(np.float32), values)
    np.testing.assert_array_equal(same, scale)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_rows_of_nothing_or_next_to_nothing(quantization, dtype):
    tiny = np.array([[0.0, -0.0], [1e-40, -1e-42], [6e-8, 0.0], [1.0, 2.0]]).astype(dtype)
    values, scale = quantize(tiny, quantization, "w")
    assert np.isfinite(scale.astype(np.float32)).all()
    assert (scale.astype(np.float32) >= np.finfo(np.float32).smallest_normal).all()
    found = dequantize(values, scale)
    assert not found[0].any()
    np.testing.assert_allclose(found, tiny.astype(np.float32), rtol=2**-4, atol=1e-40)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_what_is_not_finite_is_refused(quantization, value):
    weight = np.ones((3, 4), np.float32)
    weight[2, 1] = value
    with pytest.raises(UserError, match="layers.up: row 2 holds (nan|inf), .* weights are finite"):
        quantize(weight, quantization, "layers.up")


def test_the_largest_values_stay_finite():
    weight = np.array([[np.finfo(np.float32).max, 1.0]], np.float32)
    for quantization in QUANTIZATIONS:
        values, _ = quantize(weight, quantization, "w")
        assert float(values[0, 0]) == _LARGEST[quantization]


def _exported(tmp_path, kind="untied", **options):
    """A random model, and its folder in 8 bits."""
    source = open_source(save(random_llama(**KINDS[kind]), tmp_path / "in"))
    return source, convert_to(source, tmp_path / "out", "hf", **options)


def _load(path: Path) -> dict[str, np.ndarray]:
    """By way of torch: numpy has no float8 of its own."""
    dtypes = {torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn, torch.bfloat16: ml_dtypes.bfloat16}
    return {
        name: (
            tensor.view(torch.uint8).numpy().view(dtypes[tensor.dtype])
            if tensor.dtype in dtypes
            else tensor.numpy()
        )
        for name, tensor in safetensors.torch.load_file(path).items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_folder(quantization, kind, tmp_path):
    source, folder = _exported(tmp_path, kind, dtype="bfloat16", quantize=quantization)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert config["dtype"] == "bfloat16"
    stored = _load(folder / "model.safetensors")
    matrices = [t for t in model_tensors(source.config) if t.layer is not None and "proj" in t.name]
    assert len(matrices) == 2 * 7
    for tensor in matrices:
        values = stored.pop(tensor.hugging_face)
        scale = stored.pop(f"{tensor.hugging_face}_scale")
        assert (values.dtype, values.shape) == (QUANTIZED_DTYPES[quantization], tensor.torch_shape)
        assert (scale.dtype, scale.shape) == (SCALE_DTYPE, (tensor.torch_shape[0], 1))
        original = tensor.to_torch(source.read(tensor.name))
        np.testing.assert_array_equal(values, quantize(original, quantization, "w")[0])
    assert {array.dtype for array in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert ("lm_head.weight" in stored) == (not source.config.tie_word_embeddings)
    assert "model.embed_tokens.weight" in stored


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_tensor_lies_where_its_numbers_may(dtype, tmp_path):
    """torch refuses to look at float32 that starts at an odd byte."""
    source, folder = _exported(tmp_path, "odd sizes", dtype=dtype, quantize="int8")
    found = safetensors.torch.load_file(folder / "model.safetensors")
    for name in ("model.norm.weight", "model.embed_tokens.weight"):
        assert found[name].dtype == getattr(torch, dtype)
    norm = torch.from_numpy(source.read("final_norm")).to(getattr(torch, dtype))
    assert torch.equal(found["model.norm.weight"], norm)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_sizes_are_known_before(quantization, tmp_path, monkeypatch):
    source = open_source(save(random_llama(), tmp_path / "in"))
    options = TargetOptions("hf", "bfloat16", max_shard_bytes=9000, quantize=quantization)
    target = make_target(source, options)
    planned = target.files()
    needed = sum(file.num_bytes("bfloat16") for file in planned)
    written = []
    folder = tmp_path / "out"
    convert_to(
        source,
        folder,
        "hf",
        "bfloat16",
        progress=written.append,
        max_shard_bytes=9000,
        quantize=quantization,
    )
    assert sum(written) == needed
    assert len(planned) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == needed
    for file in planned:
        stored = _load(folder / file.path)
        assert {name: array.shape for name, array in stored.items()} == dict(file.tensors)
        assert sum(array.nbytes for array in stored.values()) == file.num_bytes("bfloat16")
        for name in stored:
            assert index["weight_map"][name] == file.path
            assert index["weight_map"][name.removesuffix("_scale")] == file.path
    for free, fits in ((needed, True), (needed - 1, False)):
        usage = shutil._ntuple_diskusage(0, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda place, usage=usage: usage)
        if fits:
            check_folder(tmp_path / "other", target, overwrite=False)
        else:
            with pytest.raises(UserError, match="needs .* GB"):
                check_folder(tmp_path / "other", target, overwrite=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_it_is_read_back(quantization, kind, tmp_path):
    source, folder = _exported(tmp_path, kind, quantize=quantization, max_shard_bytes=9000)
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
    _, folder = _exported(tmp_path, dtype="bfloat16", quantize="int8")
    back = open_source(folder)
    assert back.dtype == "float32"
    assert back.read("embed_tokens").dtype == ml_dtypes.bfloat16
    assert len(back.notes) == 1
    stored = {name: (shape, dtype) for name, shape, dtype in back.stored()}
    name = "model.layers.1.mlp.up_proj.weight"
    assert stored[name] == ((56, 32), "int8")
    assert stored[f"{name}_scale"] == ((56, 1), "bfloat16")


@pytest.mark.parametrize("through", ["meta", "megatron", "torch_dist", "dongwu"])
def test_every_source_can_be_quantized(through, tmp_path):
    """And what was read back gives the same folder again."""
    _, expected = _exported(tmp_path, quantize="fp8")
    there = convert_to(open_source(expected), tmp_path / "there", through, vocab_divisible_by=1)
    again = convert_to(open_source(there), tmp_path / "again", "hf", quantize="fp8")
    configs = [json.loads((f / "config.json").read_text()) for f in (expected, again)]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    found = _load(again / "model.safetensors")
    for name, values in _load(expected / "model.safetensors").items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.slow
def test_gguf_can_be_quantized(tmp_path):
    source = open_source(smollm2_file())
    folder = convert_to(source, tmp_path / "out", "hf", "bfloat16", quantize="int8")
    name = "layers.3.mlp.down_proj"
    difference = np.abs(open_source(folder).read(name) - source.read(name))
    assert difference.max() <= np.abs(source.read(name)).max() / 127


@pytest.mark.parametrize("target", ["meta", "megatron", "torch_dist", "dongwu"])
def test_other_formats_are_refused(target, tmp_path):
    source = open_source(save(random_llama(), tmp_path / "in"))
    with pytest.raises(UserError, match=f"--quantize int8 is for --to-format hf, and {target}"):
        make_target(source, TargetOptions(target, quantize="int8"))


def test_torch_files_are_refused(tmp_path):
    source = open_source(save(random_llama(), tmp_path / "in"))
    with pytest.raises(UserError, match="--quantize fp8 needs safetensors; .*--hf-weights bin"):
        make_target(source, TargetOptions("hf", weights="bin", quantize="fp8"))


def test_a_quantized_model_is_not_quantized_again(tmp_path):
    _, folder = _exported(tmp_path, quantize="fp8")
    with pytest.raises(UserError, match=r"--quantize int8: .* is quantized already \(fp8\)"):
        make_target(open_source(folder), TargetOptions("hf", quantize="int8"))


def test_a_model_that_is_not_finite_leaves_nothing(tmp_path):
    model = random_llama()
    model.model.layers[1].mlp.up_proj.weight.data[5, 7] = float("nan")
    source = open_source(save(model, tmp_path / "in"))
    with pytest.raises(UserError, match="model.layers.1.mlp.up_proj.weight: row 5 holds nan"):
        convert_to(source, tmp_path / "out", "hf", quantize="int8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


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
    _, folder = _exported(tmp_path, quantize="int8")
    _changed_config(folder, place, value)
    with pytest.raises(UserError) as error:
        open_source(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / 'config.json'}: quantization_config.{place}")
    assert repr(value) in message


def test_what_tools_add_to_the_config_changes_nothing(tmp_path):
    _, folder = _exported(tmp_path, quantize="int8")
    weights = {"observer": "minmax", "group_size": None, "block_structure": None}
    for name, value in weights.items():
        _changed_config(folder, f"{_GROUP}.weights.{name}", value)
    added = {"sparsity_config": {}, "transform_config": {}, "kv_cache_scheme": None}
    for name, value in added.items():
        _changed_config(folder, name, value)
    assert open_source(folder).notes


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
    _, folder = _exported(tmp_path, quantize="int8")
    tensors = load_file(folder / "model.safetensors")
    change(tensors, "model.layers.0.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"model.safetensors: tensor .*{message}"):
        open_source(folder)


def test_8_bits_without_a_word_in_the_config_are_refused(tmp_path):
    _, folder = _exported(tmp_path, quantize="fp8")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is stored as float8_e4m3fn; only"):
        open_source(folder)


@pytest.mark.parametrize("kind", ["untied", "tied, grouped", "biases"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_transformers_computes_the_same(quantization, kind, tmp_path):
    pytest.importorskip("compressed_tensors")
    _, folder = _exported(tmp_path, kind, quantize=quantization)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = random_tokens(TINY["vocab_size"])
    with_activations = transformers_logits(theirs, tokens)
    quantized = [m for m in theirs.modules() if hasattr(m, "quantization_scheme")]
    assert len(quantized) == 2 * 7
    for module in quantized:
        module.quantization_enabled = False  # of the activations; weights stay as stored
    source = open_source(folder)
    ours = our_logits(source.config, load_parameters(source.read, source.config), tokens)
    np.testing.assert_allclose(transformers_logits(theirs, tokens), ours, atol=1e-4)
    error = np.abs(with_activations - ours)
    assert 1e-3 < error.max() < 0.3 * np.abs(ours).max()
