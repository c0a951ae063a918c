"""Row orders of packed tensors against the written-out rule, for every checkpoint version."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron_models import (
    change_rank,
    load_with_torch,
    random_weights,
    small_config,
    write_checkpoint,
)

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.megatron.export import MegatronLayout
from dongwu_jax.interop.megatron.source import MegatronSource
from dongwu_jax.interop.megatron.stages import first_layers
from dongwu_jax.interop.megatron.tensors import packed_tensors


def _packed(config, kind, naming="mcore"):
    return next(tensor for tensor in packed_tensors(config, naming) if tensor.row.kind == kind)


def _rows(names):
    """A column of labels, as a matrix with rows of their own."""
    return np.array([[name] for name in names.split()])


def test_rows_of_query_key_and_value_by_group():
    config = ModelConfig(hidden_size=8, num_heads=4, num_kv_heads=2, head_dim=2, num_layers=1)
    parts = [
        _rows("q0.0 q0.1 q1.0 q1.1 q2.0 q2.1 q3.0 q3.1"),
        _rows("k0.0 k0.1 k1.0 k1.1"),
        _rows("v0.0 v0.1 v1.0 v1.1"),
    ]
    packed = _packed(config, "qkv").pack(parts)
    expected = "q0.0 q0.1 q1.0 q1.1 k0.0 k0.1 v0.0 v0.1 q2.0 q2.1 q3.0 q3.1 k1.0 k1.1 v1.0 v1.1"
    assert packed[:, 0].tolist() == expected.split()


def test_rows_of_gate_and_up_by_rank():
    config = ModelConfig(hidden_size=8, num_heads=4, intermediate_size=4, num_layers=1)
    tensor = _packed(config, "gate_up")
    stored = tensor.pack([_rows("g0 g1 g2 g3"), _rows("u0 u1 u2 u3")])
    first, second = tensor.split(stored, 2)
    assert first[:, 0].tolist() == ["g0", "g1", "u0", "u1"]
    assert second[:, 0].tolist() == ["g2", "g3", "u2", "u3"]


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    queries=st.integers(1, 3),
    half=st.integers(1, 3),
    ranks=st.sampled_from([1, 2, 4]),
    naming=st.sampled_from(["legacy", "mcore", "mcore_te"]),
)
def test_split_and_join_and_unpack_undo_each_other(groups, queries, half, ranks, naming):
    heads, width = groups * queries * 4, 2 * half
    config = ModelConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=12,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=groups * 4,
        head_dim=width,
        qkv_bias=True,
    )
    rng = np.random.default_rng(heads)
    for tensor in packed_tensors(config, naming):
        stored = rng.normal(size=tensor.shape)
        shards = list(tensor.split(stored, ranks))
        assert {shard.shape for shard in shards} == {tensor.shard_shape(ranks)}
        np.testing.assert_array_equal(tensor.join(iter(shards), ranks), stored)
        parts = tensor.unpack(stored)
        assert tuple(parts) == tensor.parts
        np.testing.assert_array_equal(tensor.pack(list(parts.values())), stored)


def test_layers_of_uneven_stages_are_counted():
    """Two stages of two chunks: 3 and 1 layers in chunk 0, 2 and 2 in chunk 1."""
    counts = {(0, 0): 3, (1, 0): 1, (0, 1): 2, (1, 1): 2}
    assert first_layers(counts) == {(0, 0): 0, (1, 0): 3, (0, 1): 4, (1, 1): 6}
    layout = MegatronLayout("mcore", 1, 2, 2)
    assert [list(layout.layers(8, (p, c))) for p in (0, 1) for c in (0, 1)] == [
        [0, 1],
        [4, 5],
        [2, 3],
        [6, 7],
    ]


def _edit(folder, change):
    """Change the file of every rank."""
    for file in sorted(folder.glob("*/mp_rank_*/model_optim_rng.pt")):
        change_rank(file, change)


@pytest.mark.parametrize("version", [None, 0, 1.0])
@pytest.mark.parametrize("ranks", [1, 2])
def test_row_orders_of_old_versions(tmp_path, version, ranks):
    """From today's [n, 3, d] by the inverse of what Megatron does when it loads old files."""
    config = small_config(num_layers=2)
    weights = random_weights(config)
    folder = write_checkpoint(tmp_path / "model", config, weights, MegatronLayout("legacy", ranks))
    heads, width = config.num_heads // ranks, config.width_per_head

    def age(contents):
        encoder = contents["model"]["language_model"]["encoder"]
        contents.pop("checkpoint_version")
        if version is not None:
            contents["checkpoint_version"] = version
        for name in [name for name in encoder if "query_key_value" in name]:
            today = encoder[name].reshape(heads, 3, width, -1)
            old = today.permute(0, 2, 1, 3) if version == 1.0 else today.permute(1, 0, 2, 3)
            encoder[name] = old.reshape(3 * heads * width, -1).contiguous()

    _edit(folder, age)
    source = MegatronSource(folder)
    for name in source.names():
        np.testing.assert_array_equal(source.read(name), weights[name], err_msg=name)


def test_interleaved_rotary_positions_are_reordered(tmp_path):
    """New rows of a head of 8 are its old rows 0 2 4 6 1 3 5 7."""
    config = small_config(num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8)
    weights = random_weights(config)
    folder = write_checkpoint(tmp_path / "model", config, weights, MegatronLayout("mcore"))
    _edit(folder, lambda contents: setattr(contents["args"], "rotary_interleaved", True))
    source = MegatronSource(folder)
    for name in source.names():
        expected = weights[name]
        if name.endswith(("q_proj", "k_proj")):
            expected = expected[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        np.testing.assert_array_equal(source.read(name), expected, err_msg=name)


def test_old_spellings_of_names(tmp_path):
    """`transformer` for `encoder`, `attention` for `self_attention`, layernorm for norm."""
    config = small_config(num_layers=2)
    weights = random_weights(config)
    folder = write_checkpoint(tmp_path / "model", config, weights, MegatronLayout("legacy"))

    def age(contents):
        language_model = contents["model"]["language_model"]
        encoder = language_model.pop("encoder")
        language_model["transformer"] = {
            name.replace("self_attention", "attention").replace("_norm", "_layernorm"): tensor
            for name, tensor in encoder.items()
        }

    _edit(folder, age)
    file = folder / "release/mp_rank_00/model_optim_rng.pt"
    file.rename(file.with_name("model_rng.pt"))
    source = MegatronSource(folder)
    for name in source.names():
        np.testing.assert_array_equal(source.read(name), weights[name], err_msg=name)


def test_uneven_pipeline(tmp_path):
    """A layer moved from the first stage to the second leaves the model as it was."""
    config = small_config(num_layers=4)
    weights = random_weights(config)
    folder = write_checkpoint(tmp_path / "model", config, weights, MegatronLayout("mcore", 1, 2))
    first, second = sorted(folder.glob("*/mp_rank_*/model_optim_rng.pt"))
    early, late = load_with_torch(first), load_with_torch(second)
    renumbered = {
        name.replace("layers.1.", "layers.2.").replace("layers.0.", "layers.1."): tensor
        for name, tensor in late["model"].items()
    }
    moved = [name for name in early["model"] if "layers.1." in name]
    for name in moved:
        renumbered[name.replace("layers.1.", "layers.0.")] = early["model"].pop(name)
    late["model"] = renumbered
    torch.save(early, first)
    torch.save(late, second)
    source = MegatronSource(folder)
    for name in source.names():
        np.testing.assert_array_equal(source.read(name), weights[name], err_msg=name)
