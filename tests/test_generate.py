"""Generation against transformers, and what sampling promises."""

import json

import jax
import numpy as np
import pytest
import torch
from reference_models import (
    TOKENIZER_VOCAB,
    random_llama,
    save,
    smollm2_file,
    train_tiny_tokenizer,
)

from dongwu_jax import generate as generation
from dongwu_jax.errors import UserError
from dongwu_jax.generate import generate
from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.sources import open_source
from dongwu_jax.models.parameters import abstract_parameters

PROMPTS = [[1, 17, 5], [1, 99, 3, 4, 60, 2, 8, 8, 70, 31, 12], [44]]


def load(folder):
    source = open_source(folder)
    return source.config, load_parameters(source.read, source.config)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model = random_llama(num_key_value_heads=2)
    return model, *load(save(model, tmp_path_factory.mktemp("tiny")))


def _transformers_greedy(model, prompt, count):
    with torch.no_grad():
        tokens = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return tokens[0, len(prompt) :].tolist()


def test_greedy_equals_transformers_for_a_batch_of_different_lengths(tiny):
    model, config, parameters = tiny
    ours = generate(config, parameters, PROMPTS, max_new_tokens=45)
    assert ours == [_transformers_greedy(model, prompt, 45) for prompt in PROMPTS]


def test_generation_stops_before_the_end_token(tiny):
    _, config, parameters = tiny
    free = generate(config, parameters, PROMPTS, max_new_tokens=20)
    end = free[0][7]
    stopped = generate(config, parameters, PROMPTS, max_new_tokens=20, eos_id=end)
    expected = [ids[: ids.index(end)] if end in ids else ids for ids in free]
    assert stopped == expected


def test_padding_rows_of_the_vocabulary_are_never_chosen(tiny):
    _, config, _ = tiny
    padded = config.model_copy(update={"padded_vocab_size": 128})
    shapes = abstract_parameters(padded)
    weights = jax.tree.map(lambda shape: np.ones(shape.shape, np.float32), shapes)
    weights["lm_head"][:, : config.vocab_size] = 0.0
    for temperature in (0.0, 5.0):
        tokens = generate(padded, weights, [[1]], max_new_tokens=30, temperature=temperature)
        assert max(tokens[0]) < config.vocab_size


def test_same_seed_same_text_and_rows_differ(tiny):
    _, config, parameters = tiny
    settings = {"max_new_tokens": 30, "temperature": 1.0, "top_p": 0.9}
    twice = [generate(config, parameters, [[1, 2]] * 2, **settings, seed=3) for _ in range(2)]
    assert twice[0] == twice[1]
    assert twice[0][0] != twice[0][1]
    assert generate(config, parameters, [[1, 2]] * 2, **settings, seed=4) != twice[0]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (2.0, 0.3)])
def test_sampled_frequencies_follow_the_nucleus(temperature, top_p):
    logits = np.array([2.0, 1.5, 1.0, 0.0, -1.0, -3.0])
    expected = np.exp(logits / temperature)
    expected /= expected.sum()
    kept = np.cumsum(expected) - expected < top_p
    expected = np.where(kept, expected, 0) / expected[kept].sum()
    draws = 20000
    shuffled = np.random.default_rng(0).permutation(6)  # the order of tokens must not matter
    keys = jax.random.split(jax.random.key(0), draws)
    chosen = generation._sample(
        np.tile(logits[shuffled], (draws, 1)).astype(np.float32), keys, temperature, top_p
    )
    frequencies = np.bincount(shuffled[np.asarray(chosen)], minlength=6) / draws
    assert np.abs(frequencies - expected).max() < 0.015
    assert (frequencies[~kept] == 0).all()


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[]], {}, "empty"),
        ([[1] * 60], {"max_new_tokens": 30}, "max_position_embeddings=64"),
        ([[500]], {}, "tokenizer"),
        ([[1]], {"top_p": 0.0}, "top_p"),
        ([[1]], {"temperature": -1.0}, "temperature"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_bad_requests_are_explained(tiny, prompts, settings, message):
    _, config, parameters = tiny
    with pytest.raises(UserError, match=message):
        generate(config, parameters, prompts, **{"max_new_tokens": 5} | settings)


@pytest.mark.slow
def test_smollm2_greedy_equals_transformers():
    import transformers

    path = smollm2_file()
    source = open_source(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    texts = ["The capital of France is", "A bond is", "def add(a, b):\n    return", "中国的首都是"]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    ours = generate(
        source.config, load_parameters(source.read, source.config), prompts, max_new_tokens=48
    )
    assert ours == [_transformers_greedy(model, prompt, 48) for prompt in prompts]


def test_command_line(tmp_path, capsys):
    tokenizer = train_tiny_tokenizer(tmp_path)
    folder = save(random_llama(vocab_size=TOKENIZER_VOCAB), tmp_path / "model")
    common = ["--model", str(folder), "--max-new-tokens", "5", "--seed", "1"]
    common += ["--tokenizer", str(tokenizer)]
    generation.main([*common, "--prompt", "a bond"])
    text = capsys.readouterr().out
    assert text.startswith("a bond")
    generation.main([*common, "--prompt", "a bond", "--prompt", "cash"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["prompt"] for record in records] == ["a bond", "cash"]
    with pytest.raises(UserError, match="has no tokenizer"):
        generation.main(["--model", str(folder), "--prompt", "x"])
