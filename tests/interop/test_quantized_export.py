"""Folders of 8-bit weights that we write: what is in them, and when there is none."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from conversions import convert_to
from quantized_models import KINDS, load, quantized_export
from reference_models import (
    TINY,
    logits_of,
    random_llama,
    random_tokens,
    save,
    smollm2_file,
    transformers_logits,
)

from dongwu_jax.errors import UserError
from dongwu_jax.interop.conversion import TargetOptions, check_folder, make_target
from dongwu_jax.interop.quantization import QUANTIZATIONS, QUANTIZED_DTYPES, SCALE_DTYPE, quantize
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.tensors import model_tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_folder(quantization, kind, tmp_path):
    source, folder = quantized_export(tmp_path, kind, dtype="bfloat16", quantize=quantization)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert config["dtype"] == "bfloat16"
    stored = load(folder / "model.safetensors")
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
    source, folder = quantized_export(tmp_path, "odd sizes", dtype=dtype, quantize="int8")
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
        stored = load(folder / file.path)
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


@pytest.mark.parametrize("through", ["meta", "megatron", "torch_dist", "dongwu"])
def test_every_source_can_be_quantized(through, tmp_path):
    """And what was read back gives the same folder again."""
    _, expected = quantized_export(tmp_path, quantize="fp8")
    there = convert_to(open_source(expected), tmp_path / "there", through, vocab_divisible_by=1)
    again = convert_to(open_source(there), tmp_path / "again", "hf", quantize="fp8")
    configs = [json.loads((f / "config.json").read_text()) for f in (expected, again)]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    found = load(again / "model.safetensors")
    for name, values in load(expected / "model.safetensors").items():
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
    _, folder = quantized_export(tmp_path, quantize="fp8")
    with pytest.raises(UserError, match=r"--quantize int8: .* is quantized already \(fp8\)"):
        make_target(open_source(folder), TargetOptions("hf", quantize="int8"))


def test_a_model_that_is_not_finite_leaves_nothing(tmp_path):
    model = random_llama()
    model.model.layers[1].mlp.up_proj.weight.data[5, 7] = float("nan")
    source = open_source(save(model, tmp_path / "in"))
    with pytest.raises(UserError, match="model.layers.1.mlp.up_proj.weight: row 5 holds nan"):
        convert_to(source, tmp_path / "out", "hf", quantize="int8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("kind", ["untied", "tied, grouped", "biases"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_transformers_computes_the_same(quantization, kind, tmp_path):
    pytest.importorskip("compressed_tensors")
    _, folder = quantized_export(tmp_path, kind, quantize=quantization)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = random_tokens(TINY["vocab_size"])
    with_activations = transformers_logits(theirs, tokens)
    quantized = [m for m in theirs.modules() if hasattr(m, "quantization_scheme")]
    assert len(quantized) == 2 * 7
    for module in quantized:
        module.quantization_enabled = False  # of the activations; weights stay as stored
    source = open_source(folder)
    ours = logits_of(source, tokens)
    np.testing.assert_allclose(transformers_logits(theirs, tokens), ours, atol=1e-4)
    error = np.abs(with_activations - ours)
    assert 1e-3 < error.max() < 0.3 * np.abs(ours).max()
