"""Hugging Face folders: which weights are read, and which are refused."""

import json

import numpy as np
import pytest
import torch
from reference_models import change_weights, random_llama, save
from safetensors.numpy import load_file, save_file

from dongwu_jax.errors import UserError
from dongwu_jax.interop.sources import open_source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight is missing"),
        (lambda t: t.update(extra=np.zeros(3)), "extra has no place"),
        (lambda t: t.update({"model.norm.weight": np.zeros(3)}), "model.norm.weight has shape"),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(32, np.int8)}),
            "model.norm.weight is stored as int8",
        ),
    ],
)
def test_wrong_tensors_are_refused(tmp_path, change, message):
    folder = save(random_llama(), tmp_path)
    change_weights(folder, change)
    with pytest.raises(UserError, match=message):
        open_source(folder)


def test_mixed_dtypes_are_noted(tmp_path):
    model = random_llama().to(torch.bfloat16)
    folder = save(model, tmp_path)
    assert open_source(folder).notes == []
    change_weights(folder, lambda t: t.update({"model.norm.weight": np.zeros(32, np.float32)}))
    source = open_source(folder)
    assert source.dtype == "float32"
    assert len(source.notes) == 1
    assert "tensors are stored as bfloat16 and float32" in source.notes[0]


def test_a_bias_on_the_attention_output_is_refused(tmp_path):
    model = random_llama(attention_bias=True)
    model.model.layers[1].self_attn.o_proj.bias.data += 1
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.o_proj\.bias is not zero"):
        open_source(save(model, tmp_path))


def test_a_tied_model_with_another_head_is_refused(tmp_path):
    folder = save(random_llama(tie_word_embeddings=True), tmp_path)
    change_weights(
        folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 0})
    )
    open_source(folder)
    change_weights(
        folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    )
    with pytest.raises(UserError, match="tie_word_embeddings"):
        open_source(folder)


def test_a_tied_copy_with_nan_is_a_copy(tmp_path):
    model = random_llama(tie_word_embeddings=True).to(torch.bfloat16)
    model.model.embed_tokens.weight.data[3, 4] = float("nan")
    folder = save(model, tmp_path)
    change_weights(
        folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()})
    )
    assert "lm_head" not in open_source(folder).names()


def test_damaged_and_missing_files_are_explained(tmp_path):
    folder = save(random_llama(), tmp_path)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: is not a whole safetensors file"):
        open_source(folder)
    weights.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        open_source(folder)
    index = folder / "model.safetensors.index.json"
    for name, message in (
        ("../../elsewhere.safetensors", "is not the name of a file"),
        ("model-00001-of-00002.safetensors", "is missing, model.safetensors.index.json names it"),
    ):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UserError, match=message):
            open_source(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: is not JSON"):
        open_source(folder)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    folder = save(random_llama(), tmp_path)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    norm = load_file(folder / "a.safetensors")["model.norm.weight"]
    save_file({"model.norm.weight": norm}, folder / "b.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.norm\.weight stands in a\.safetensors too"):
        open_source(folder)
