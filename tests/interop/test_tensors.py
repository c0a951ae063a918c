"""The table of tensors against the model and against torch's layout."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.models.parameters import abstract_parameters, logical_axes, named_parameters

CONFIGS = [
    {},
    {"tie_word_embeddings": True, "num_kv_heads": 2},
    {"qkv_bias": True, "padded_vocab_size": 40, "head_dim": 10},
]
SMALL = {
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_layers": 2,
    "num_heads": 4,
}


@pytest.mark.parametrize("changes", CONFIGS)
def test_table_has_every_parameter_of_the_model(changes):
    config = ModelConfig(**SMALL | changes)
    tensors = model_tensors(config)
    shapes = named_parameters(abstract_parameters(config))
    assert {t.name: t.shape for t in tensors} == {n: s.shape for n, s in shapes.items()}
    assert {t.name: t.row.axes for t in tensors} == logical_axes(config)


def test_linear_layers_are_stored_out_by_in():
    tensors = {t.name: t for t in model_tensors(ModelConfig(**SMALL, num_kv_heads=2))}
    weight = np.arange(24 * 4 * 6).reshape(24, 4, 6)  # embed, heads, head_dim
    stored = tensors["layers.0.attention.q_proj"].to_torch(weight)
    assert stored.shape == (24, 24)
    assert stored[1 * 6 + 5, 7] == weight[7, 1, 5]
    output = tensors["layers.1.attention.o_proj"].to_torch(weight.transpose(1, 2, 0))
    assert output[7, 1 * 6 + 5] == weight[7, 1, 5]


@given(st.sampled_from(CONFIGS), st.sampled_from(["<u2", "<u4"]), st.integers(0, 2**32))
def test_layouts_convert_without_losing_a_bit(changes, dtype, seed):
    random = np.random.default_rng(seed)
    for tensor in model_tensors(ModelConfig(**SMALL | changes)):
        ours = random.integers(0, 2**16, tensor.shape).astype(dtype)
        stored = tensor.to_torch(ours)
        assert stored.shape == tensor.torch_shape
        assert np.array_equal(tensor.from_torch(np.ascontiguousarray(stored)), ours)
