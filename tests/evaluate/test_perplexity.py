"""Every protocol against a straightforward computation with transformers."""

import json
import math
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from json_lines import write_texts
from reference_models import TOKENIZER_VOCAB, change_weights, random_llama, save_with_tokenizer

from dongwu_jax.data.indexed_dataset import bin_path
from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter
from dongwu_jax.data.tokenizers import load_tokenizer
from dongwu_jax.errors import UserError
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
    data = folder / "texts.jsonl"
    write_texts(data, TEXTS)
    return model, save_with_tokenizer(model, folder), data


def _evaluate(folder, data, *options):
    result = folder / "result.json"
    main = runpy.run_path(str(TOOL))["main"]
    arguments = ["--model", str(folder), "--data", str(data), "--json", str(result)]
    main(["perplexity", *arguments, *options])
    return json.loads(result.read_text())["results"]


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
    (report,) = _evaluate(folder, data, "--lengths", str(length))
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
    (report,) = _evaluate(folder, data, "--lengths", "16", "--max-tokens", str(limit))
    assert report["bytes"] == len((TEXTS[0] + tokenizer.decode(second)).encode())
    assert report["loss"] * report["tokens"] == pytest.approx(total, rel=1e-5)


def _window_losses(model, tokens):
    """Nats of every token but the first, each from all before it."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]])).logits[0]
    labels = torch.tensor(tokens[1:])
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().numpy()


def _documents(folder):
    tokenizer = load_tokenizer(folder)
    return tokenizer, [[1, *tokenizer.encode(text), 2] for text in TEXTS]


@pytest.mark.parametrize(("length", "stride"), [(8, 3), (8, 8), (64, 16)])
def test_sliding_equals_transformers(exported, length, stride):
    model, folder, data = exported
    total, count = 0.0, 0
    for document in _documents(folder)[1]:
        done = 0  # predicted so far
        while done < len(document) - 1:
            stop = min(length if done == 0 else done + stride, len(document) - 1)
            window = document[max(0, stop - length) : stop + 1]
            new = _window_losses(model, window)[-(stop - done) :]
            total, count, done = total + new.sum(), count + len(new), stop
    options = ("--protocol", "sliding", "--lengths", str(length), "--stride", str(stride))
    (report,) = _evaluate(folder, data, *options)
    assert (report["protocol"], report["stride"]) == ("sliding", stride)
    assert report["tokens"] == count
    assert report["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert report["loss"] == pytest.approx(total / count, rel=1e-5)


def test_truncate_equals_transformers_on_the_same_documents_for_all_lengths(exported):
    model, folder, data = exported
    tokenizer, documents = _documents(folder)
    shortest, *_, longest = sorted({len(document) for document in documents})
    lengths = (shortest // 2, longest - 1)
    long_enough = [document for document in documents if len(document) > max(lengths)]
    assert 0 < len(long_enough) < len(documents)
    options = ("--protocol", "truncate", "--lengths", ",".join(map(str, lengths)))
    for length, report in zip(lengths, _evaluate(folder, data, *options), strict=True):
        kept = [document[: length + 1] for document in long_enough]
        losses = np.concatenate([_window_losses(model, tokens) for tokens in kept])
        assert report["documents"] == len(long_enough)
        assert report["tokens"] == len(losses)
        assert report["bytes"] == sum(len(tokenizer.decode(tokens).encode()) for tokens in kept)
        assert report["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_perplexity_by_position(exported):
    model, folder, _ = exported
    tokens = [1, *np.random.default_rng(0).integers(3, TOKENIZER_VOCAB, size=200).tolist()]
    data = folder / "random_text_document"
    with IndexedDatasetWriter(data, np.uint16) as writer:
        writer.add_document(np.array(tokens, np.uint16), [len(tokens)])
    (report,) = _evaluate(folder, data, "--protocol", "truncate", "--lengths", "200")
    losses = _window_losses(model, tokens)
    for part, (first, last) in zip(
        report["by_position"], [(1, 64), (65, 128), (129, 200)], strict=True
    ):
        assert (part["first"], part["last"]) == (first, last)
        expected = math.exp(losses[first - 1 : last].mean())
        assert part["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_indexed_dataset_and_text_file_give_the_same_stream(exported, tmp_path):
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
    assert from_index.bytes.sum() == from_text.bytes.sum() == len(text.read_bytes())


@pytest.mark.parametrize(("eos_id", "given"), [(2, [0, 2, 4]), (1, [0, 4])])
def test_beginning_tokens_are_given_and_end_tokens_counted(tmp_path, eos_id, given):
    """Some tokenizers begin and end texts with the same token."""

    class Tokenizer:
        bos_id, vocab_size = 1, 10

        def decode(self, tokens):
            return "x" * len(tokens)

    Tokenizer.eos_id = eos_id
    with IndexedDatasetWriter(tmp_path / "ids", np.uint16) as writer:
        writer.add_document(np.array([1, 5, 1, 6]), [4])
        writer.add_document(np.array([1, 7]), [2])
    stream = read_token_stream(tmp_path / "ids", Tokenizer(), None)
    assert np.flatnonzero(stream.given).tolist() == given


def test_windows_shorter_than_asked_for_are_named(exported, caplog):
    _, folder, data = exported
    _evaluate(folder, data, "--lengths", "4096")
    assert "length 4096: no document is as long" in caplog.text


def test_a_damaged_model_is_named(exported, tmp_path):
    _, folder, data = exported
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    change_weights(broken, lambda weights: weights["model.norm.weight"].fill(np.nan))
    with pytest.raises(UserError, match="not a finite number"):
        _evaluate(broken, data, "--lengths", "16")


def test_a_missing_text_is_named(exported):
    _, folder, data = exported
    with pytest.raises(UserError, match="nowhere.jsonl"):
        _evaluate(folder, data, "--data", "nowhere.jsonl")


@pytest.mark.parametrize("option", ["--lengths", "--max-tokens", "--stride"])
def test_numbers_begin_at_one(exported, option, capsys):
    _, folder, data = exported
    with pytest.raises(SystemExit, match="2"):
        _evaluate(folder, data, option, "0")
    assert f"argument {option}: '0' is not a positive whole number" in capsys.readouterr().err


def test_a_stride_beyond_the_shortest_length(exported):
    _, folder, data = exported
    sliding = ["--protocol", "sliding", "--lengths", "64,32", "--stride", "33"]
    with pytest.raises(UserError, match="--stride 33: must be from 1 to the shortest.*32"):
        _evaluate(folder, data, *sliding)


@pytest.mark.parametrize("protocol", ["chunked", "sliding", "truncate"])
def test_the_figure_is_drawn(exported, tmp_path, protocol):
    pytest.importorskip("matplotlib")
    _, folder, data = exported
    drawing = tmp_path / "perplexity.png"
    options = ["--protocol", protocol, "--lengths", "4,8", "--stride", "4"]
    _evaluate(folder, data, *options, "--png", str(drawing))
    assert drawing.read_bytes().startswith(b"\x89PNG")
