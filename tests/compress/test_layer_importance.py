"""The rise of the loss without a layer, against transformers without it."""

import copy

import jax
import numpy as np
import pytest
import torch
from reference_models import TOKENIZER_VOCAB, random_llama, save_with_tokenizer

from dongwu_jax.compress.layer_importance import loss_rises
from dongwu_jax.errors import UserError
from dongwu_jax.interop.loaded_model import load_model

LAYERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model with a tokenizer, as transformers has it and where it lies."""
    folder = tmp_path_factory.mktemp("model")
    reference = random_llama(
        vocab_size=TOKENIZER_VOCAB, num_hidden_layers=LAYERS, num_key_value_heads=2
    )
    return reference, save_with_tokenizer(reference, folder)


def _loss(reference, tokens):
    """Mean cross entropy of all tokens but the first of each sequence."""
    with torch.no_grad():
        logits = reference(tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits.double(), tokens[:, 1:].flatten()).item()


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 4)])
def test_it_is_what_transformers_loses_without_the_layer(model, devices, fsdp):
    reference, folder = model
    tokens = np.random.default_rng(0).integers(TOKENIZER_VOCAB, size=(16, 10), dtype=np.int32)
    whole, expected = _loss(reference, torch.tensor(tokens).long()), []
    for layer in range(LAYERS):
        without = copy.deepcopy(reference)
        del without.model.layers[layer]
        without.config.num_hidden_layers = LAYERS - 1
        expected.append(_loss(without, torch.tensor(tokens).long()) - whole)
    loaded = load_model(folder, "float32", devices=jax.devices()[:devices], fsdp=fsdp)
    done = []
    found = loss_rises(loaded, [tokens[:8], tokens[8:]], done.append)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.ptp(expected) > 0.01
    assert sum(done) == tokens.size * (LAYERS + 1)


def test_a_token_alone_predicts_nothing(model):
    loaded = load_model(model[1], "float32")
    with pytest.raises(UserError, match="--length 1: there is nothing to predict"):
        loss_rises(loaded, [np.zeros((1, 1), np.int32)])
