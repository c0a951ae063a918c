"""Hugging Face folders with pickled weights: torch and transformers as the truth."""

import json

import numpy as np
import pytest
import torch
import transformers
from reference_models import TINY, random_llama, random_tokens, save, transformers_logits
from safetensors.numpy import load_file

from dongwu_jax.errors import UserError
from dongwu_jax.interop.hf import HuggingFaceSource
from dongwu_jax.interop.hf_export import HuggingFaceTarget


def _save_bin(model, folder, files=1):
    """As transformers 4 wrote it: tied heads stored, inverse frequencies too."""
    save(model, folder)
    (folder / "model.safetensors").unlink()
    state = model.state_dict()
    for layer in range(TINY["num_hidden_layers"]):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    if files == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    names = [f"pytorch_model-{n:05}-of-{files:05}.bin" for n in range(1, files + 1)]
    weight_map = {tensor: names[place % files] for place, tensor in enumerate(state)}
    for name in names:
        torch.save({t: v for t, v in state.items() if weight_map[t] == name}, folder / name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def _export(source, folder, dtype, **options):
    folder.mkdir()
    target = HuggingFaceTarget(source.config, dtype, **options)
    written = []
    target.write(folder, source.read, written.append)
    assert sum(written) == sum(file.num_bytes(dtype) for file in target.files())
    assert {file.path for file in target.files()} <= {file.name for file in folder.iterdir()}
    return folder


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_weights_equal_torch_bit_by_bit(tmp_path, files, tied):
    model = random_llama(tie_word_embeddings=tied, num_key_value_heads=2).to(torch.bfloat16)
    save(model, tmp_path / "safe")
    source = HuggingFaceSource(_save_bin(model, tmp_path / "bin", files))
    assert source.dtype == "bfloat16"
    assert f"{files} torch file" in source.description
    assert source.config.tie_word_embeddings == tied
    folder = _export(source, tmp_path / "out", "bfloat16")
    stored, original = (
        load_file(place / "model.safetensors") for place in (folder, tmp_path / "safe")
    )
    assert stored.keys() == original.keys()
    assert all(stored[name].tobytes() == original[name].tobytes() for name in original)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000], ids=["one file", "shards"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"attention_bias": True}],
    ids=["plain", "tied", "biases"],
)
def test_transformers_loads_our_bin_files(tmp_path, max_shard_bytes, changes):
    model = random_llama(**changes)
    source = HuggingFaceSource(save(model, tmp_path / "in"))
    folder = _export(
        source, tmp_path / "out", "float32", weights="bin", max_shard_bytes=max_shard_bytes
    )
    assert not list(folder.glob("*.safetensors*"))
    again = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = random_tokens(TINY["vocab_size"])
    assert np.array_equal(transformers_logits(again, tokens), transformers_logits(model, tokens))


def test_shards_are_named_and_indexed_as_transformers_does(tmp_path):
    source = HuggingFaceSource(save(random_llama(), tmp_path / "in"))
    folder = _export(source, tmp_path / "out", "float16", weights="bin", max_shard_bytes=20_000)
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    files = sorted(folder.glob("*.bin"))
    count = len(files)
    assert count > 2
    assert [file.name for file in files] == [
        f"pytorch_model-{n:05}-of-{count:05}.bin" for n in range(1, count + 1)
    ]
    total = 0
    for file in files:
        state = torch.load(file, weights_only=True)
        assert {index["weight_map"][name] for name in state} == {file.name}
        total += sum(tensor.nbytes for tensor in state.values())
        assert all(tensor.dtype == torch.float16 for tensor in state.values())
    assert index["metadata"]["total_size"] == total
    again = HuggingFaceSource(folder)
    for name in source.names():
        assert np.array_equal(again.read(name), source.read(name).astype(np.float16))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold a dict of tensors, not a list"),
        ({"step": 3}, "'step' is a int, not a tensor"),
        ({3: torch.zeros(1)}, "3 is a StoredArray, not a tensor"),
        ({"x": torch.zeros(1)}, r"model\.embed_tokens\.weight is missing"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, message):
    folder = save(random_llama(), tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        HuggingFaceSource(folder)


def test_a_missing_part_is_named(tmp_path):
    folder = _save_bin(random_llama(), tmp_path, files=2)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"pytorch_model-00002-of-00002\.bin: is missing"):
        HuggingFaceSource(folder)
