"""Scores against logits of transformers, on one device and with weights shared by several."""

import jax
import numpy as np
import pytest
import torch
from reference_models import TOKENIZER_VOCAB, random_llama, save_with_tokenizer

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.scoring import Scorer
from dongwu_jax.interop.loaded_model import load_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    model = random_llama(vocab_size=TOKENIZER_VOCAB, max_position_embeddings=2048)
    return model, save_with_tokenizer(model, folder)


def _reference(model, tokens, labels):
    with torch.no_grad():
        logits = model(torch.tensor(tokens)).logits
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(labels).long().flatten(), reduction="none"
    )
    return losses.view(labels.shape).numpy(), (logits.argmax(-1).numpy() == labels)


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (4, 1), (4, 4), (8, 2)])
def test_scores_equal_transformers_on_any_devices(exported, devices, fsdp):
    model, folder = exported
    loaded = load_model(folder, "float32", devices=jax.devices()[:devices], fsdp=fsdp)
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(TOKENIZER_VOCAB, size=(2, 8, 12), dtype=np.int32)
    with torch.no_grad():  # so that some are right
        labels[:, ::2] = model(torch.tensor(tokens)).logits.argmax(-1)[:, ::2]
    losses, likeliest = _reference(model, tokens, labels)
    found = Scorer(loaded)(tokens, labels)
    np.testing.assert_allclose(found.losses, losses, atol=1e-4)
    np.testing.assert_array_equal(found.likeliest, likeliest)
    assert 0 < likeliest.sum() < likeliest.size


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (4, 2)])
def test_what_may_come_next(exported, devices, fsdp):
    model, folder = exported
    loaded = load_model(folder, "float32", devices=jax.devices()[:devices], fsdp=fsdp)
    tokens = np.random.default_rng(2).integers(TOKENIZER_VOCAB, size=(4, 9), dtype=np.int32)
    last = np.array([8, 0, 3, 7], np.int32)
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor(tokens)).logits, -1).numpy()
    found = Scorer(loaded).next_tokens(tokens, last)
    np.testing.assert_allclose(found, expected[np.arange(4), last], atol=1e-4)


def test_shared_weights_are_kept_in_parts(exported):
    loaded = load_model(exported[1], "float32", devices=jax.devices()[:4], fsdp=4)
    weight = loaded.parameters["layers"][0]["mlp"]["gate_proj"]
    assert weight.addressable_shards[0].data.size * 4 == weight.size


def test_more_tokens_than_logits_exist_at_once(exported):
    model, folder = exported
    tokens = np.random.default_rng(1).integers(TOKENIZER_VOCAB, size=(1, 1101), dtype=np.int32)
    losses, _ = _reference(model, tokens[:, :-1], tokens[:, 1:])
    found = Scorer(load_model(folder, "float32"))(tokens[:, :-1], tokens[:, 1:])
    np.testing.assert_allclose(found.losses, losses, atol=1e-4)


def test_rows_of_a_call(exported):
    scorer = Scorer(load_model(exported[1], devices=jax.devices()[:4]))
    assert [scorer.rows_for(n, 512) for n in (1, 5, 100)] == [4, 8, 64]
    assert scorer.rows_for(100, 32768) == 4


def test_devices_that_cannot_share(exported):
    with pytest.raises(UserError, match="fsdp=3: must divide the number of devices, 4"):
        load_model(exported[1], devices=jax.devices()[:4], fsdp=3)
