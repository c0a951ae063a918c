"""The chunked protocol against a straightforward computation with transformers."""

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_models import TOKENIZER_VOCAB, random_llama, save, train_tiny_tokenizer

from dongwu_jax.data.indexed_dataset import bin_path
from dongwu_jax.data.tokenizers import load_tokenizer
from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.perplexity import cut_windows
from dongwu_jax.evaluate.texts import read_token_stream

TEXTS = [
    "The central bank sells bonds.",
    "证券法规定，上市公司应当披露。",
    "rate 4.25 %\n  cash",
] * 4
TOOL = Path(__file__).parents[2] / "tools/evaluate.py"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A random model with a tokenizer, and a file of texts."""
    folder = tmp_path_factory.mktemp("exported")
    model = random_llama(vocab_size=TOKENIZER_VOCAB)
    tokenizer = train_tiny_tokenizer(folder)
    tokenizer.rename(folder / "tokenizer.model")
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return model, save(model, folder), data


def _evaluate(folder, data, *options):
    result = folder / "result.json"
    main = runpy.run_path(str(TOOL))["main"]
    arguments = ["--model", str(folder), "--data", str(data), "--json", str(result)]
    main(["perplexity", *arguments, *options])
    return json.loads(result.read_text())


def _transformers_loss(model, stream, length):
    """Sum of nats and number of tokens, window by window, beginning tokens left out."""
    total, count = 0.0, 0
    for first in range(0, len(stream) - 1, length):
        inputs = torch.tensor([stream[first : first + length]])
        labels = torch.tensor(stream[first + 1 : first + length + 1])
        with torch.no_grad():
            logits = model(inputs).logits[0, : len(labels)]
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        total += losses[labels != 1].double().sum().item()
        count += int((labels != 1).sum())
    return total, count


@pytest.mark.parametrize("length", [7, 32])
def test_perplexity_equals_transformers(exported, length):
    model, folder, data = exported
    tokenizer = load_tokenizer(folder)
    stream = [id for text in TEXTS for id in [1, *tokenizer.encode(text), 2]]
    total, count = _transformers_loss(model, stream, length)
    report = _evaluate(folder, data, "--length", str(length))
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert report["tokens"] == count
    assert report["bytes"] == num_bytes
    assert report["documents"] == len(TEXTS)
    assert report["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert report["bits_per_byte"] == pytest.approx(total / math.log(2) / num_bytes, rel=1e-5)


def test_a_limit_counts_predicted_tokens_and_their_bytes(exported):
    model, folder, data = exported
    tokenizer = load_tokenizer(folder)
    first = [1, *tokenizer.encode(TEXTS[0]), 2]
    second = [1, *tokenizer.encode(TEXTS[1])[:5]]
    total, _ = _transformers_loss(model, first + second, 16)
    limit = len(first + second) - 1
    report = _evaluate(folder, data, "--length", "16", "--max-tokens", str(limit))
    assert report["bytes"] == len((TEXTS[0] + tokenizer.decode(second)).encode())
    assert report["loss"] * report["tokens"] == pytest.approx(total, rel=1e-5)


@given(st.integers(2, 60), st.integers(1, 20))
def test_every_token_but_the_first_is_predicted_once(num_tokens, length):
    stream = np.arange(num_tokens, dtype=np.int32)
    windows = cut_windows(stream, length, ignored_label=None)
    assert windows.labels[windows.counted == 1].tolist() == list(range(1, num_tokens))
    assert (windows.tokens + 1 == windows.labels)[windows.counted == 1].all()


def test_indexed_dataset_and_text_file_give_the_same_stream(exported, tmp_path):
    from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter

    _, folder, _ = exported
    tokenizer = load_tokenizer(folder)
    text = tmp_path / "one.txt"
    text.write_text("\n".join(TEXTS))
    from_text = read_token_stream(text, tokenizer, None)
    prefix = tmp_path / "one_text_document"
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        writer.add_document(from_text.tokens, [len(from_text.tokens)])
    assert bin_path(prefix).is_file()
    from_index = read_token_stream(prefix, tokenizer, None)
    assert from_index.tokens.tolist() == from_text.tokens.tolist()
    assert from_index.num_bytes == from_text.num_bytes == len(text.read_bytes())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--length", "0"], "--length"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_requests_are_explained(exported, options, message):
    _, folder, data = exported
    with pytest.raises(UserError, match=message):
        _evaluate(folder, data, *options)
