"""Rotary frequencies under every scaling, against transformers and closed forms."""

import json

import numpy as np
import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.interop.hf_config import hugging_face_config, parse_hugging_face_config
from dongwu_jax.models.rope_frequencies import (
    attention_factor,
    inverse_frequencies,
    with_new_base,
)

SMALL = {"hidden_size": 512, "num_heads": 8, "num_layers": 1}


def config_with(scaling, length=32768, theta=10000.0, **changes):
    sizes = SMALL | changes
    return ModelConfig(
        max_position_embeddings=length,
        rope_theta=theta,
        rope_scaling=None if scaling is None else RopeScaling(**scaling),
        **sizes,
    )


def in_transformers(config):
    """What transformers makes of our `config.json`: frequencies and attention factor."""
    fields = hugging_face_config(config, "float32", {})
    rotary = LlamaRotaryEmbedding(transformers.LlamaConfig(**fields))
    return rotary.inv_freq.numpy(), rotary.attention_scaling


SCALINGS = {
    "none": None,
    "linear": {"type": "linear", "factor": 8},
    "ntk": {"type": "ntk", "factor": 8},
    "yarn": {"type": "yarn", "factor": 8},
    "yarn_all": {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 8192,
        "beta_fast": 20,
        "beta_slow": 2,
        "truncate": False,
        "attention_factor": 1.3,
    },
    "yarn_of_short": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16},
    "llama3": {"type": "llama3", "factor": 8, "original_max_position_embeddings": 8192},
    "llama3_all": {
        "type": "llama3",
        "factor": 32,
        "low_freq_factor": 2,
        "high_freq_factor": 8.5,
    },
}


@pytest.mark.parametrize("theta", [10000.0, 5e5])
@pytest.mark.parametrize("name", SCALINGS)
def test_equal_to_transformers(name, theta):
    config = config_with(SCALINGS[name], theta=theta)
    frequencies, factor = in_transformers(config)
    np.testing.assert_allclose(inverse_frequencies(config), frequencies, rtol=3e-7)
    assert attention_factor(config) == pytest.approx(factor, rel=1e-12)


@settings(deadline=None, max_examples=60)
@example(kind="llama3", factor=26.0, original=10915, theta=8046717.0, head_dim=64)
@given(
    kind=st.sampled_from(["linear", "ntk", "yarn", "llama3"]),
    factor=st.floats(1, 64),
    original=st.integers(256, 16384),
    theta=st.floats(1000, 1e7),
    head_dim=st.sampled_from([32, 64, 128, 256]),
)
def test_equal_to_transformers_anywhere(kind, factor, original, theta, head_dim):
    length = round(original * factor)
    scaling = {"type": kind, "factor": factor}
    config = config_with(scaling, length, theta, head_dim=head_dim)
    frequencies, found = in_transformers(config)
    # Between two bands an error of float32 in the share that is kept, 4/3 of 6e-8, counts up to
    # factor - 1 times, on both sides.
    np.testing.assert_allclose(inverse_frequencies(config), frequencies, rtol=1e-5)
    assert attention_factor(config) == pytest.approx(found)


@pytest.mark.parametrize("name", SCALINGS)
def test_what_is_written_is_read_as_the_same_positions(tmp_path, name):
    config = config_with(SCALINGS[name])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(hugging_face_config(config, "float32", {})))
    read = parse_hugging_face_config(json.loads(path.read_text()), path)
    assert read.max_position_embeddings == 32768
    np.testing.assert_array_equal(inverse_frequencies(read), inverse_frequencies(config))
    assert attention_factor(read) == attention_factor(config)


def test_deepseeks_spelling_of_the_attention_factor(tmp_path):
    rope = {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
        "rope_theta": 10000.0,
    }
    config = config_with(None, 163840)
    fields = hugging_face_config(config, "float32", {}) | {
        "rope_scaling": rope,
        "rope_parameters": rope,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**fields)).attention_scaling
    assert attention_factor(
        parse_hugging_face_config(json.loads(path.read_text()), path)
    ) == pytest.approx(theirs)


def test_a_missing_original_length_is_the_stated_one(tmp_path):
    """As transformers: what stands in the file is then the length before scaling."""
    rope = {"rope_type": "yarn", "factor": 4.0}
    fields = hugging_face_config(config_with(None, 4096), "float32", {})
    del fields["rope_parameters"], fields["max_sequence_length"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields | {"rope_scaling": rope}))
    read = parse_hugging_face_config(json.loads(path.read_text()), path)
    assert read.max_position_embeddings == 16384
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**fields | {"rope_scaling": rope}))
    np.testing.assert_allclose(inverse_frequencies(read), theirs.inv_freq.numpy(), rtol=3e-7)


def test_the_new_base_slows_the_slowest_pair_by_the_factor_and_not_the_fastest():
    plain = inverse_frequencies(config_with(None))
    scaled = inverse_frequencies(config_with({"type": "ntk", "factor": 8}))
    assert scaled[0] == plain[0]
    assert plain[-1] / scaled[-1] == pytest.approx(8, rel=1e-5)
    written = with_new_base(config_with({"type": "ntk", "factor": 8}))
    assert written.rope_scaling is None
    assert written.rope_theta == pytest.approx(10000 * 8 ** (64 / 62))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "linear", "factor": 2, "beta_fast": 3}, "beta_fast=3.0 is for type yarn alone"),
        (
            {"type": "ntk", "factor": 2, "original_max_position_embeddings": 8},
            "is for type yarn or llama3 alone",
        ),
        ({"type": "yarn", "factor": 2, "beta_slow": 40}, "beta_slow=40 must be below beta_fast=32"),
        (
            {"type": "llama3", "factor": 2, "low_freq_factor": 4},
            "low_freq_factor=4 must be below high_freq_factor=4",
        ),
        (
            {"type": "yarn", "factor": 2, "original_max_position_embeddings": 40000},
            "original_max_position_embeddings=40000 is above max_position_embeddings=32768",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(scaling, message):
    with pytest.raises(ValueError, match=message):
        config_with(scaling)
