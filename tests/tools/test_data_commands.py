"""What a user sees of bad input to the commands that make data and tokenizers."""

import gzip
import shutil
from functools import partial
from pathlib import Path

import pytest
from command_lines import cut_short, exit_code, load_tool

preprocess = load_tool("preprocess_data").main
merge = load_tool("merge_datasets").main
train_tokenizer = load_tool("train_tokenizer").main
gather_corpus = load_tool("gather_corpus").main


@pytest.fixture
def inputs(tmp_path, corpus):
    """Inputs that cannot be read, and what is said of each."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "key.jsonl").write_text('{"body": "a"}\n')
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes())[:500])
    return {
        tmp_path / "gone.jsonl": "gone.jsonl: no such file",
        tmp_path / "folder": "folder: is a folder; name its files",
        tmp_path / "bad.jsonl": "bad.jsonl:2: is not JSON",
        tmp_path / "key.jsonl": "key.jsonl:1: has no key 'text' (its keys: body)",
        tmp_path / "latin.jsonl": "latin.jsonl:1: is not UTF-8 at byte",
        tmp_path / "cut.jsonl.gz": "cut.jsonl.gz: cannot be read to its end",
    }


def test_preprocess_refuses_bad_inputs(refused, inputs, tokenizer, tmp_path):
    flags = ["--tokenizer-type", "Llama2Tokenizer", "--tokenizer-model", tokenizer]
    for path, expected in inputs.items():
        output = tmp_path / "out" / path.name
        message = refused(preprocess, "--input", path, "--output-prefix", output, *flags)
        assert expected in message
        assert not list(output.parent.glob("*.idx"))


def test_preprocess_refuses_bad_tokenizers(refused, corpus, tokenizer, model, tmp_path):
    broken = cut_short(Path(shutil.copy(tokenizer, tmp_path / "cut.model")))
    json_cut = cut_short(Path(shutil.copy(model / "tokenizer.json", tmp_path)))
    (tmp_path / "empty.model").touch()
    for kind, path, expected in [
        ("Llama2Tokenizer", tmp_path / "gone.model", "cannot be read: No such file"),
        ("Llama2Tokenizer", broken, "is not a SentencePiece model"),
        ("Llama2Tokenizer", tmp_path / "empty.model", "is not a SentencePiece model"),
        ("Llama2Tokenizer", json_cut, "is not a SentencePiece model"),
        ("HuggingFaceTokenizer", json_cut, "is not a Hugging Face tokenizer"),
        ("HuggingFaceTokenizer", tokenizer, "is not a Hugging Face tokenizer"),
    ]:
        flags = ["--tokenizer-type", kind, "--tokenizer-model", path]
        output = tmp_path / "out"
        message = refused(preprocess, "--input", corpus, "--output-prefix", output, *flags)
        assert f"{path}: {expected}" in message


def test_preprocess_refuses_bad_outputs_and_numbers(refused, corpus, tokenizer, dataset, tmp_path):
    flags = ["--tokenizer-type", "Llama2Tokenizer", "--tokenizer-model", tokenizer]
    run = partial(refused, preprocess, "--input", corpus, *flags, "--output-prefix")
    exists = run(str(dataset).removesuffix("_text_document"))
    assert f"{dataset}.bin: exists already; add --overwrite" in exists
    assert "cannot be written" in run(corpus / "below_a_file")
    assert "--workers 0: must be at least 1" in run(tmp_path / "a", "--workers", "0")
    assert "--json-keys: 'text'" in run(tmp_path / "a", "--json-keys", "text", "text")


def test_preprocess_says_when_nothing_was_read(capsys, tokenizer, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    flags = ["--tokenizer-type", "Llama2Tokenizer", "--tokenizer-model", tokenizer]
    output = tmp_path / "out"
    assert not exit_code(
        preprocess, "--input", tmp_path / "empty.jsonl", "--output-prefix", output, *flags
    )
    assert "warning: no line of the input became a document" in capsys.readouterr().err


@pytest.fixture
def parts(dataset, tmp_path):
    """A folder with two datasets."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("x", "y"):
        for ending in ("bin", "idx"):
            shutil.copy(f"{dataset}.{ending}", folder / f"{name}.{ending}")
    return folder


def test_merge_refuses_bad_outputs(refused, parts, dataset, tmp_path):
    run = partial(refused, merge, "--input", parts, "--output-prefix")
    assert f"{dataset}.bin: exists already; add --overwrite" in run(dataset)
    assert "lies in the input folder" in run(parts / "all")
    assert "cannot be written" in run(parts / "x.bin" / "all")
    assert "has no modes of sequences" in run(tmp_path / "all", "--multimodal")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda parts: cut_short(parts / "y.bin"), "y.bin"),
        (lambda parts: cut_short(parts / "y.idx"), "y.idx: has"),
        (lambda parts: (parts / "y.idx").write_bytes(b""), "y.idx: is not an index"),
        (lambda parts: (parts / "y.idx").unlink(), "its partner y.idx is missing"),
        (lambda parts: [file.unlink() for file in parts.iterdir()], "holds no .bin/.idx"),
        (lambda parts: shutil.rmtree(parts), "is no folder"),
    ],
)
def test_merge_refuses_damaged_inputs(refused, parts, tmp_path, damage, expected):
    damage(parts)
    assert expected in refused(merge, "--input", parts, "--output-prefix", tmp_path / "all")
    assert not list(tmp_path.glob("all*"))


def test_train_tokenizer_refuses_bad_inputs(refused, inputs, tmp_path):
    output = tmp_path / "new.model"
    for path, expected in inputs.items():
        arguments = ["--input", path, "--vocab-size", 300, "--output", output]
        assert expected in refused(train_tokenizer, *arguments)
        assert not output.exists()


def test_train_tokenizer_refuses_bad_outputs_and_sizes(refused, corpus, tokenizer, tmp_path):
    (tmp_path / "folder.model").mkdir()
    for size, output, expected in [
        (300, tokenizer, f"{tokenizer}: exists already; add --overwrite"),
        (300, tmp_path / "folder.model", "folder.model: is a folder"),
        (300, tokenizer / "below_a_file.model", "below_a_file.model: cannot be written"),
        (300, tmp_path / "a.bin", "a.bin: the name of a SentencePiece model must end in .model"),
        (0, tmp_path / "a.model", "--vocab-size 0: must be at least 1"),
        (30, tmp_path / "a.model", "vocab_size=30: "),
        (10**6, tmp_path / "a.model", "vocab_size=1000000: the corpus allows at most"),
    ]:
        arguments = ["--input", corpus, "--vocab-size", size, "--output", output]
        assert expected in refused(train_tokenizer, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.model"]


def test_gather_corpus_refuses_bad_sources_and_outputs(refused, inputs, corpus, tmp_path):
    output = tmp_path / "out"
    run = partial(refused, gather_corpus, "--output", output, "--source")
    for path in ("bad.jsonl", "key.jsonl", "cut.jsonl.gz"):
        assert inputs[tmp_path / path] in run(tmp_path / path)
    for source in ("wikipedia", tmp_path / "folder"):
        assert f"corpus {source}: must be auto, china-law, python-library, or" in run(source)
    (tmp_path / "short.jsonl").write_text('{"text": "short"}\n')
    assert "too few documents of 200 characters" in run(tmp_path / "short.jsonl")
    assert not list(output.iterdir())
    for path in (corpus, corpus / "below"):
        message = refused(gather_corpus, "--source", corpus, "--output", path)
        assert f"{path}: cannot be written" in message


def test_gather_corpus_never_replaces_unasked(refused, corpus, tmp_path):
    mine = tmp_path / "train.jsonl"
    shutil.copy(corpus, mine)
    run = partial(refused, gather_corpus, "--output", tmp_path)
    assert f"{mine}: exists already; add --overwrite" in run("--source", corpus)
    assert "would replace --source" in run("--source", mine, "--overwrite")
    assert mine.read_bytes() == corpus.read_bytes()
