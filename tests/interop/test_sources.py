"""Opening any model, and laying its weights out for a run."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from reference_models import random_llama, save

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.errors import UserError
from dongwu_jax.interop.loading import load_parameters, resolve_model_config
from dongwu_jax.interop.sources import open_source
from dongwu_jax.models.parameters import named_parameters, parameter_shardings
from dongwu_jax.parallel.mesh import MESH_AXES, make_mesh
from dongwu_jax.parallel.sharding import LogicalSharding, resolve_rules


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    model = random_llama(vocab_size=100).bfloat16()
    return open_source(save(model, tmp_path_factory.mktemp("source")))


def test_source_says_what_it_is(source):
    assert (source.format, source.dtype, source.tokenizer) == ("hf", "bfloat16", None)
    assert source.config.vocab_size == 100
    assert source.names()[0] == "embed_tokens"
    assert source.read("layers.1.attention.q_proj").shape == (32, 4, 8)


def test_parameters_are_float32_copies(source):
    for name, values in named_parameters(load_parameters(source.read, source.config)).items():
        assert values.dtype == np.float32
        assert np.array_equal(values, source.read(name).astype(np.float32))


def test_parameters_are_sharded_as_asked(source):
    config = source.config.model_copy(update={"padded_vocab_size": 104})
    shape = dict.fromkeys(MESH_AXES, 1) | {"fsdp": 2, "tensor": 4}
    sharding = LogicalSharding(make_mesh(shape, jax.devices()[:8]), resolve_rules({}))
    loaded = load_parameters(source.read, config, parameter_shardings(config, sharding))
    embedding = loaded["embed_tokens"]
    assert embedding.sharding.spec == PartitionSpec(("tensor",), ("fsdp",))
    assert {shard.data.shape for shard in embedding.addressable_shards} == {(26, 16)}
    assert np.array_equal(embedding[:100], source.read("embed_tokens").astype(np.float32))
    assert not np.asarray(embedding[100:]).any()
    assert loaded["lm_head"].shape == (32, 104)
    assert not np.asarray(loaded["lm_head"][:, 100:]).any()


def test_other_shapes_are_never_cut_to_fit(source):
    config = source.config.model_copy(update={"intermediate_size": 40})
    with pytest.raises(UserError, match=r"mlp\.gate_proj"):
        load_parameters(source.read, config)


def test_a_run_may_change_little_else_is_an_error(source):
    requested = ModelConfig(
        vocab_size=100,
        padded_vocab_size=128,
        rope_scaling=RopeScaling(factor=4),
        max_position_embeddings=256,
    )
    resolved = resolve_model_config(requested, source.config, "here")
    assert resolved.vocab_rows == 128
    assert resolved.rope_scaling == RopeScaling(factor=4)
    assert resolved.hidden_size == source.config.hidden_size
    assert resolved.rms_norm_eps == source.config.rms_norm_eps
    agreeing = ModelConfig(hidden_size=32, num_heads=4, num_kv_heads=None, head_dim=None)
    assert resolve_model_config(agreeing, source.config, "here") == source.config
    with pytest.raises(UserError, match=r"model\.num_layers=7, .* here have num_layers=2"):
        resolve_model_config(ModelConfig(num_layers=7), source.config, "here")
    with pytest.raises(UserError, match="model.padded_vocab_size=90"):
        resolve_model_config(
            ModelConfig(vocab_size=100, padded_vocab_size=100).model_copy(
                update={"padded_vocab_size": 90}
            ),
            source.config,
            "here",
        )


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_source(tmp_path / "absent")
    with pytest.raises(UserError, match="is not a model"):
        open_source(tmp_path)
