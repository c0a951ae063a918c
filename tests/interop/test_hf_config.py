"""The config.json of Hugging Face, as transformers 4 and 5 write it: read, refused, written."""

import json

import pytest
import transformers
from reference_models import TINY

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.errors import UserError
from dongwu_jax.interop.hf_config import hugging_face_config, parse_hugging_face_config

FOUR = {  # the spelling of transformers 4
    "model_type": "llama",
    "torch_dtype": "float16",
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rope_theta": 5e5,
    "rope_scaling": {"type": "linear", "factor": 2},
}


def _read(tmp_path, fields):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return _config_of(tmp_path)


def _config_of(folder):
    path = folder / "config.json"
    return parse_hugging_face_config(json.loads(path.read_text()), path)


def test_config_of_transformers_4(tmp_path):
    config = _read(tmp_path, FOUR)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling(factor=2.0)
    assert config.max_position_embeddings == 128
    assert config.kv_heads == 4
    assert config.rms_norm_eps == transformers.LlamaConfig().rms_norm_eps


def test_config_of_transformers_5(tmp_path):
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}
    transformers.LlamaConfig(**TINY, rope_parameters=rope, head_dim=16).save_pretrained(tmp_path)
    config = _config_of(tmp_path)
    assert (config.rope_theta, config.rope_scaling, config.head_dim) == (
        1e6,
        RopeScaling(factor=4.0),
        16,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, "model_type='mixtral'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor=None"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}},
            "beta_slow=1 must be below beta_fast=0.5",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": "a"}},
            "rope_scaling.low_freq_factor='a'",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": "x",
                    "mscale": 1,
                    "mscale_all_dim": 2,
                }
            },
            "factor='x', mscale=1",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor=None"),
        ({"rope_scaling": {"factor": 2.0}}, "factor=2.0 has no rope_type"),
        ({"rope_scaling": None, "rope_parameters": {"factor": 2.0}}, "factor=2.0 has no rope_type"),
        ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "factor=inf must be a fin"),
        ({"rope_scaling": {"type": "linear", "factor": 1e308}}, "not a length"),
        ({"rope_theta": float("inf")}, "rope_theta: .*finite"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_scaling": [1]}, "JSON object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 5}, "hidden_size=32 is not a multiple of num_heads=5"),
        ({"model_type": "mistral"}, "sliding_window"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_unsupported_config_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        _read(tmp_path, FOUR | changes)
    assert "config.json" in str(error.value)


def test_written_config_has_both_spellings_and_reads_back():
    config = ModelConfig(
        max_position_embeddings=32768, rope_scaling=RopeScaling(factor=8), rope_theta=5e5
    )
    fields = hugging_face_config(config, "bfloat16", {"bos_token_id": 1, "eos_token_id": 2})
    assert fields["max_position_embeddings"] == 4096
    assert fields["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert isinstance(fields["rope_scaling"]["factor"], float)
    assert fields["rope_parameters"] == {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}
    assert fields["rope_theta"] == 5e5
    assert fields["dtype"] == fields["torch_dtype"] == "bfloat16"
