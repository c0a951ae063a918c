"""Every naming and layout gives the same weights back, bit for bit; torch loads every file."""

import ml_dtypes
import numpy as np
import pytest
import torch
from megatron_models import (
    load_with_torch,
    model_entries,
    random_weights,
    read_all,
    small_config,
    write_checkpoint,
)

from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.errors import UserError
from dongwu_jax.interop.megatron.export import MegatronLayout, MegatronTarget, padded_vocab_size
from dongwu_jax.interop.megatron.source import MegatronSource

_STAGES = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)]
_ATTENTION = {"mha": {}, "gqa": {"num_kv_heads": 8}}


def _check_round_trip(folder, config, layout):
    weights = random_weights(config)
    write_checkpoint(folder, config, weights, layout, 56, iteration=12, consumed_samples=345)
    source = MegatronSource(folder)
    assert source.layout.naming == layout.naming
    assert (source.iteration, source.consumed_samples) == (12, 345)
    again = read_all(source)
    assert again.keys() == weights.keys()
    for name, values in weights.items():
        if 56 in again[name].shape:  # Megatron-LLaMA pads no head, so that padding can be cut
            vocab = again[name].shape.index(56)
            padding = np.take(again[name], range(50, 56), vocab)
            assert (padding == np.take(values, [49], vocab)).all()
            again[name] = np.take(again[name], range(50), vocab)
        np.testing.assert_array_equal(again[name], values, err_msg=name)


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize(("stages", "virtual"), _STAGES)
@pytest.mark.parametrize("naming", ["legacy", "mcore", "mcore_te"])
def test_round_trip(tmp_path, naming, stages, virtual, tensor):
    layout = MegatronLayout(naming, tensor, stages, virtual)
    for kind, attention in _ATTENTION.items():
        for tied in (False, True):
            config = small_config(**attention, tie_word_embeddings=tied)
            _check_round_trip(tmp_path / f"{kind}_{tied}", config, layout)


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize(("stages", "virtual"), _STAGES)
def test_round_trip_of_megatron_llama(tmp_path, stages, virtual, tensor):
    layout = MegatronLayout("megatron_llama", tensor, stages, virtual)
    _check_round_trip(tmp_path / "model", small_config(), layout)


def test_more_ranks_than_groups_of_heads(tmp_path):
    config = small_config(num_heads=8, num_kv_heads=2, head_dim=4)
    _check_round_trip(tmp_path / "model", config, MegatronLayout("mcore", 8, 2))


@pytest.mark.parametrize("naming", ["legacy", "mcore_te"])
def test_biases_of_query_key_and_value(tmp_path, naming):
    config = small_config(num_kv_heads=8, qkv_bias=True)
    _check_round_trip(tmp_path / "model", config, MegatronLayout(naming, 4, 2))


def test_settings_come_back(tmp_path):
    config = small_config(
        rope_theta=500000.0,
        rope_scaling=RopeScaling(factor=8),
        rms_norm_eps=3e-6,
        initializer_range=0.01,
    )
    weights = random_weights(config)
    source = MegatronSource(
        write_checkpoint(tmp_path / "model", config, weights, MegatronLayout("mcore", 2))
    )
    assert source.config == config
    assert source.iteration is None
    assert not source.notes  # it says how many rows are tokens
    assert (tmp_path / "model/release/mp_rank_01/model_optim_rng.pt").is_file()
    assert (tmp_path / "model/latest_checkpointed_iteration.txt").read_text() == "release"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_loads_our_files_and_their_arguments(tmp_path, dtype):
    config = small_config(tie_word_embeddings=True)
    weights = random_weights(config, dtype)
    layout = MegatronLayout("mcore", 2, 2)
    write_checkpoint(tmp_path / "model", config, weights, layout, 56, dtype=dtype, iteration=7)
    last = load_with_torch(tmp_path / "model/iter_0000007/mp_rank_01_001/model_optim_rng.pt")
    assert (last["checkpoint_version"], last["iteration"]) == (3.0, 7)
    args = last["args"]
    assert args.params_dtype == getattr(torch, dtype)
    assert (args.bf16, args.fp16) == (dtype == "bfloat16", dtype == "float16")
    assert (args.num_layers, args.hidden_size, args.num_attention_heads) == (8, 32, 16)
    assert (args.padded_vocab_size, args.make_vocab_size_divisible_by) == (56, 28)
    assert args.tensor_model_parallel_size == args.pipeline_model_parallel_size == 2
    entries = model_entries(last)
    assert {tensor.dtype for tensor in entries.values()} == {getattr(torch, dtype)}
    half = entries["model/output_layer.weight"].float().numpy()  # the copy of a tied embedding
    np.testing.assert_array_equal(half[:22], weights["embed_tokens"][28:].astype(np.float32))


def test_planned_files_are_the_written_ones(tmp_path):
    config = small_config(num_kv_heads=8, tie_word_embeddings=True)
    layout = MegatronLayout("legacy", 2, 2, 2)
    target = MegatronTarget(config, "bfloat16", layout, 64, iteration=3)
    told = []
    target.write(tmp_path, random_weights(config).__getitem__, told.append)
    planned = target.files()
    for file in planned:
        entries = model_entries(load_with_torch(tmp_path / file.path))
        assert [(name, tuple(t.shape)) for name, t in entries.items()] == file.tensors
    assert sum(told) == sum(file.num_bytes("bfloat16") for file in planned)


def test_vocabulary_is_cut_kept_and_repeated(tmp_path):
    """Padding of the source is kept, cut, or (where more is needed) replaced."""
    config = small_config(padded_vocab_size=56)
    weights = random_weights(config)
    for rows in (56, 52, 64):
        folder = tmp_path / str(rows)
        write_checkpoint(folder, config, weights, MegatronLayout("legacy", 2), rows)
        embedding = MegatronSource(folder).read("embed_tokens")
        assert len(embedding) == rows
        real = min(rows, 56) if rows <= 56 else 50
        np.testing.assert_array_equal(embedding[:real], weights["embed_tokens"][:real])
        assert (embedding[real:] == weights["embed_tokens"][49]).all()


def test_padding_follows_megatrons_rule():
    assert padded_vocab_size(125696, 128, 8) == 125952
    assert padded_vocab_size(32000, 128, 1) == 32000
    assert padded_vocab_size(32000, 128, 8) == 32768


@pytest.mark.parametrize(
    ("changes", "layout", "rows", "message"),
    [
        ({"num_heads": 6, "num_kv_heads": 6}, MegatronLayout(tensor_parallel=4), 56, "num_heads=6"),
        ({"intermediate_size": 42}, MegatronLayout(tensor_parallel=4), 56, "intermediate_size=42"),
        ({}, MegatronLayout(tensor_parallel=4), 50, "padded_vocab_size=50"),
        ({}, MegatronLayout(), 40, "padded_vocab_size=40 is smaller"),
        ({"num_kv_heads": 2}, MegatronLayout("legacy", 4), 56, "num_kv_heads=2"),
        ({}, MegatronLayout(pipeline_parallel=3), 56, "num_layers=8"),
        ({}, MegatronLayout("mcore", 1, 2, 3), 56, "virtual_pipeline=3"),
        ({}, MegatronLayout(tensor_parallel=0), 56, "tensor_parallel=0"),
        ({"num_kv_heads": 8}, MegatronLayout("megatron_llama"), 56, "grouped queries"),
        ({"tie_word_embeddings": True}, MegatronLayout("megatron_llama"), 56, "tied embeddings"),
        ({"qkv_bias": True}, MegatronLayout("megatron_llama"), 56, "biases"),
        ({"rope_scaling": RopeScaling(factor=1.5)}, MegatronLayout(), 56, "whole number"),
    ],
)
def test_impossible_layouts_are_refused(changes, layout, rows, message):
    with pytest.raises(UserError, match=message):
        MegatronTarget(small_config(**changes), "float32", layout, rows).files()


def test_values_too_large_for_float16_are_refused(tmp_path):
    config = small_config()
    weights = random_weights(config, "bfloat16")
    weights["layers.3.mlp.up_proj"][0, 0] = ml_dtypes.bfloat16(1e30)
    with pytest.raises(UserError, match="layers.3.mlp.up_proj.*too large for float16"):
        write_checkpoint(tmp_path / "model", config, weights, MegatronLayout(), dtype="float16")
    assert not (tmp_path / "model/latest_checkpointed_iteration.txt").exists()


def test_tokenizer_is_copied(tmp_path):
    tokenizer = tmp_path / "tiny.model"
    tokenizer.write_bytes(b"model")
    config = small_config()
    weights = random_weights(config)
    folder = tmp_path / "model"
    write_checkpoint(folder, config, weights, MegatronLayout(), tokenizer=tokenizer)
    assert MegatronSource(folder).tokenizer == folder / "tokenizer"
    assert (folder / "tokenizer/tiny.model").read_bytes() == b"model"
