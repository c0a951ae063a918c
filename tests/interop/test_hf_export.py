"""Hugging Face folders that we write: transformers loads them, and so do we."""

import json

import numpy as np
import pytest
import torch
import transformers
from conversions import convert_to
from reference_models import (
    TINY,
    TOKENIZER_VOCAB,
    our_logits,
    random_llama,
    random_tokens,
    randomize_vectors,
    save,
    train_tiny_tokenizer,
    transformers_logits,
)
from safetensors.numpy import load_file

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.errors import UserError
from dongwu_jax.interop.atomic_folder import new_folder
from dongwu_jax.interop.hf_config import hugging_face_config, parse_hugging_face_config
from dongwu_jax.interop.hf_export import HuggingFaceTarget
from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.sources import open_source
from dongwu_jax.models.parameters import initial_parameters, named_parameters
from dongwu_jax.models.rope_frequencies import inverse_frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 2},
        {"attention_bias": True, "head_dim": 10},
        {"rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0}},
        {"rope_parameters": YARN | {"rope_theta": 500.0}},
        {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}},
    ],
    ids=["untied", "tied gqa", "biases", "linear scaling", "yarn", "llama3"],
)
def test_transformers_loads_our_export(tmp_path, changes):
    model = random_llama(**changes)
    source = open_source(save(model, tmp_path / "in"))
    convert_to(source, tmp_path / "out", "hf", max_shard_bytes=4000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.float32
    tokens = random_tokens(TINY["vocab_size"])
    assert np.array_equal(transformers_logits(again, tokens), transformers_logits(model, tokens))
    frequencies = inverse_frequencies(source.config)
    assert np.allclose(again.model.rotary_emb.inv_freq.numpy(), frequencies, rtol=1e-6)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2


def test_export_in_one_file_keeps_every_bit(tmp_path):
    model = random_llama().to(torch.bfloat16)
    folder = save(model, tmp_path / "in")
    convert_to(open_source(folder), tmp_path / "out", "hf")
    stored, original = (
        load_file(place / "model.safetensors") for place in (tmp_path / "out", folder)
    )
    assert stored.keys() == original.keys()
    for name, values in original.items():
        assert stored[name].dtype == values.dtype == "bfloat16"
        assert stored[name].tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_export_in_another_dtype_rounds_as_torch(tmp_path, dtype):
    model = random_llama()
    convert_to(open_source(save(model, tmp_path / "in")), tmp_path / "out", "hf", dtype=dtype)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.dtype == getattr(torch, dtype)
    rounded = model.to(getattr(torch, dtype)).state_dict()
    for name, values in again.state_dict().items():
        assert torch.equal(values, rounded[name]), name


def test_qwen2_is_exported_as_a_llama_with_biases(tmp_path):
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TINY)).eval()
    randomize_vectors(model)
    convert_to(open_source(save(model, tmp_path / "in")), tmp_path / "out", "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(again, transformers.LlamaForCausalLM)
    tokens = random_tokens(TINY["vocab_size"])
    theirs, ours = transformers_logits(model, tokens), transformers_logits(again, tokens)
    assert np.abs(theirs - ours).max() < 1e-5


def test_an_export_is_read_back_as_the_same_model(tmp_path):
    config = ModelConfig(
        vocab_size=TOKENIZER_VOCAB,
        padded_vocab_size=TOKENIZER_VOCAB + 12,
        hidden_size=32,
        intermediate_size=56,
        num_layers=1,
        num_heads=4,
        max_position_embeddings=32768,
        rope_scaling=RopeScaling(factor=8),
        rope_theta=12345.678,
        rms_norm_eps=3e-6,
    )
    weights = named_parameters(initial_parameters(config, seed=0))
    target = HuggingFaceTarget(config, "float32", train_tiny_tokenizer(tmp_path))
    folder = tmp_path / "out"
    folder.mkdir()
    target.write(folder, lambda name: np.asarray(weights[name]), lambda num_bytes: None)
    resolved = {"num_kv_heads": 4, "head_dim": 8, "padded_vocab_size": None}
    path = folder / "config.json"
    read = parse_hugging_face_config(json.loads(path.read_text()), path)
    assert read == config.model_copy(update=resolved)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 32768


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": 777.0}, "rope_theta and rope_scaling are read as other"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "read as other"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters are"),
        ({"rms_norm_eps": 1e-4}, "is read as another model"),
    ],
)
def test_an_export_that_would_be_read_otherwise_is_refused(tmp_path, monkeypatch, change, message):
    source = open_source(save(random_llama(), tmp_path / "in"))
    config = source.config.model_copy(
        update={"rope_scaling": RopeScaling(factor=4), "max_position_embeddings": 256}
    )
    written = hugging_face_config
    monkeypatch.setattr(
        "dongwu_jax.interop.hf_export.hugging_face_config",
        lambda *arguments: written(*arguments) | change,
    )
    target = HuggingFaceTarget(config, "float32")
    with (
        pytest.raises(RuntimeError, match=message),
        new_folder(tmp_path / "out", overwrite=False) as folder,
    ):
        target.write(folder, source.read, lambda num_bytes: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_padding_rows_are_left_out(tmp_path):
    source = open_source(save(random_llama(), tmp_path / "in"))
    convert_to(source, tmp_path / "plain", "hf")
    source.config = source.config.model_copy(update={"padded_vocab_size": 128})
    plain_read = source.read

    def read_padded(name):
        values = plain_read(name)
        rows = {"embed_tokens": ((0, 27), (0, 0)), "lm_head": ((0, 0), (0, 27))}
        return np.pad(values, rows[name]) if name in rows else values

    source.read = read_padded
    convert_to(source, tmp_path / "padded", "hf")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "padded" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path):
    source = open_source(save(random_llama(), tmp_path / "in"))
    with pytest.raises(UserError, match=f"has {TOKENIZER_VOCAB} tokens"):
        convert_to(source, tmp_path / "out", "hf", tokenizer=train_tiny_tokenizer(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_a_run_that_leaves_the_original_length_to_its_factor_is_exported(kind, tmp_path):
    source = open_source(save(random_llama(), tmp_path / "in"))
    length = source.config.max_position_embeddings
    scaling = RopeScaling(type=kind, factor=4)
    changes = {"rope_scaling": scaling, "max_position_embeddings": 4 * length}
    source.config = source.config.model_copy(update=changes)
    convert_to(source, tmp_path / "out", "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.max_position_embeddings == 4 * length
    assert again.config.rope_parameters["original_max_position_embeddings"] == length
    frequencies = inverse_frequencies(source.config)
    assert np.allclose(again.model.rotary_emb.inv_freq.numpy(), frequencies, rtol=1e-6)


def test_ntk_scaling_is_exported_as_another_base(tmp_path):
    """Only our checkpoints know it by name; transformers computes the same with a new base."""
    source = open_source(save(random_llama(), tmp_path / "in"))
    scaled = source.config.model_copy(update={"rope_scaling": RopeScaling(type="ntk", factor=4)})
    source.config = scaled
    checkpoint = open_source(convert_to(source, tmp_path / "checkpoint", "dongwu"))
    convert_to(checkpoint, tmp_path / "out", "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = random_tokens(TINY["vocab_size"])
    ours = our_logits(scaled, load_parameters(source.read, scaled), tokens)
    theirs = transformers_logits(again, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    plain = transformers_logits(random_llama(), tokens)
    assert np.abs(theirs - plain).max() > 1e-2
