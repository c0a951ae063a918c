"""Preprocessing against the files Megatron's own tool wrote, and what can go wrong on the way."""

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import zstandard
from processes import wait_until

from dongwu_jax.data import jsonl
from dongwu_jax.data import preprocess as preprocess_module
from dongwu_jax.data.document_encoder import DocumentEncoder, EncodingSettings
from dongwu_jax.data.indexed_dataset import IndexedDataset
from dongwu_jax.data.preprocess import preprocess
from dongwu_jax.data.tokenizer_training import train_sentencepiece
from dongwu_jax.errors import UserError

_ROOT = Path(__file__).parents[2]
_TOOL = _ROOT / "tools" / "preprocess_data.py"
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(_ROOT)}


def _read(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(["the yield of the bond rises. 收益率上升。"] * 5, path, 300)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """3000 short documents, some of them empty, with blank lines between."""
    lines = [
        json.dumps({"text": f"bond {i} rises. " * (i % 4), "title": f"收益率 {i}"}) + "\n" * (i % 3)
        for i in range(3000)
    ]
    path = tmp_path / "in" / "corpus.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, and a process for every worker however little there is to do."""
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 4000)
    monkeypatch.setattr(preprocess_module, "_MIN_BYTES_PER_WORKER", 1)


def _settings(model: Path, **changes: object) -> EncodingSettings:
    return EncodingSettings("GPTSentencePieceTokenizer", model, **changes)  # type: ignore[arg-type]


def _megatron_input(data: Path, name: str) -> bytes:
    """A raw file; one document's paths were changed in it after Megatron had read it."""
    if name != "mixed":
        content = (data / "raw" / f"{name}.jsonl").read_bytes()
        return content.replace(b"/mnt/tmp", b"/tmp/tmp")
    english = _megatron_input(data, "en").splitlines(keepends=True)
    chinese = _megatron_input(data, "zh").splitlines(keepends=True)
    lines = []
    for i in range(800):
        lines += [*english[3 * i : 3 * i + 3], chinese[i]]
    return b"".join(lines)


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("en", "--tokenizer-type GPTSentencePieceTokenizer --append-eod", "out/u16_w1_en"),
        ("zh", "--tokenizer-type Llama2Tokenizer --bos none --append-eod", "out/u16_w1_zh"),
        ("mixed", "--tokenizer-type Llama2Tokenizer --bos none --append-eod", "out/u16_w1_mixed"),
        ("edge", "--tokenizer-type Llama2Tokenizer --bos none --append-eod", "out/u16_w1_edge"),
        ("edge", "--tokenizer-type GPTSentencePieceTokenizer", "out/u16_noeod_edge"),
        ("en", "--tokenizer-type Llama2Tokenizer --append-eod", "out2023/v23_llama2_en"),
        (
            "en",
            "--tokenizer-type Llama2Tokenizer --append-eod --bos document --partitions 2",
            "out2023/v23_llama2_en",
        ),
    ],
)
def test_command_writes_the_bytes_of_megatron(
    shared_data: Path, tmp_path: Path, name: str, flags: str, expected: str
) -> None:
    data = shared_data / "megatron" / "data"
    corpus = tmp_path / f"{name}.jsonl"
    corpus.write_bytes(_megatron_input(data, name))
    command = [sys.executable, _TOOL, *flags.split(), "--workers", "2", "--input", corpus]
    command += ["--tokenizer-model", data / "tokenizers" / "mistral_v1_32k.model"]
    subprocess.run([*command, "--output-prefix", tmp_path / "out"], env=_ENVIRONMENT, check=True)
    same = _read(tmp_path / "out_text_document") == _read(data / f"{expected}_text_document")
    assert same  # not compared in the assertion, which would print both files


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("workers", [2, 4])
def test_output_does_not_depend_on_workers(
    model: Path, corpus: Path, tmp_path: Path, workers: int
) -> None:
    preprocess(_settings(model, append_eod=True), [corpus], tmp_path / "one")
    summary = preprocess(_settings(model, append_eod=True), [corpus], tmp_path / "many", workers)
    assert _read(tmp_path / "many_text_document") == _read(tmp_path / "one_text_document")
    assert summary.documents == 3000
    assert summary.tokens == IndexedDataset(summary.prefixes[0]).num_tokens
    names = {path.name for path in tmp_path.iterdir()}
    assert not [name for name in names if "partial" in name]


def test_several_files_and_compression(model: Path, corpus: Path, tmp_path: Path) -> None:
    lines = corpus.read_bytes().splitlines(keepends=True)
    third = len(lines) // 3
    parts = {
        "0.jsonl": b"".join(lines[:third]),
        "1.jsonl.gz": gzip.compress(b"".join(lines[third : 2 * third])),
        "2.jsonl.zst": zstandard.compress(b"".join(lines[2 * third :])),
    }
    for name, content in parts.items():
        (tmp_path / name).write_bytes(content)
    preprocess(_settings(model), [corpus], tmp_path / "whole")
    inputs = jsonl.expand_inputs([str(tmp_path / "*.jsonl*")])
    preprocess(_settings(model), inputs, tmp_path / "parts")
    assert _read(tmp_path / "parts_text_document") == _read(tmp_path / "whole_text_document")


def test_every_key_has_its_dataset(model: Path, corpus: Path, tmp_path: Path) -> None:
    settings = _settings(model, json_keys=("title", "text"))
    summary = preprocess(settings, [corpus], tmp_path / "out")
    preprocess(_settings(model), [corpus], tmp_path / "alone")
    assert [prefix.name for prefix in summary.prefixes] == [
        "out_title_document",
        "out_text_document",
    ]
    assert _read(tmp_path / "out_text_document") == _read(tmp_path / "alone_text_document")
    with pytest.raises(UserError, match="given twice"):
        preprocess(_settings(model, json_keys=("a", "a")), [corpus], tmp_path / "twice")


_KILLED = """
import sys
from pathlib import Path
from dongwu_jax.data import jsonl, preprocess
from dongwu_jax.data.document_encoder import EncodingSettings
jsonl._BLOCK_BYTES = 2000
model, corpus, prefix = map(Path, sys.argv[1:])
settings = EncodingSettings("GPTSentencePieceTokenizer", model, append_eod=True)
preprocess.preprocess(settings, [corpus], prefix, overwrite=True, checkpoint_seconds=0)
"""


@pytest.mark.parametrize("pack", [None, gzip.compress, zstandard.compress])
def test_a_killed_run_goes_on(
    model: Path,
    corpus: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    pack: Callable[[bytes], bytes] | None,
) -> None:
    settings = _settings(model, append_eod=True)
    preprocess(settings, [corpus], tmp_path / "whole")
    if pack is not None:
        suffix = ".gz" if pack is gzip.compress else ".zst"
        packed = corpus.with_name(corpus.name + suffix)
        packed.write_bytes(pack(corpus.read_bytes()))
        corpus = packed
    command = [sys.executable, "-c", _KILLED, model, corpus, tmp_path / "out"]
    process = subprocess.Popen(command, env=_ENVIRONMENT)
    state = tmp_path / "out.state.partial"
    wait_until(state.exists, process, pause=0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out_text_document.bin").exists()
    assert not (tmp_path / "out_text_document.idx").exists()
    preprocess(settings, [corpus], tmp_path / "out")
    assert "going on after" in caplog.text
    assert _read(tmp_path / "out_text_document") == _read(tmp_path / "whole_text_document")
    assert not state.exists()


@pytest.mark.usefixtures("small_blocks")
def test_a_bad_line_stops_and_keeps_the_work(
    model: Path, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = corpus.read_bytes().splitlines(keepends=True)
    lines.insert(2000, b'{"text": 5}\n')
    corpus.write_bytes(b"".join(lines))
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"corpus\.jsonl:2001: the value of 'text'"):
            preprocess(_settings(model), [corpus], tmp_path / "out", workers)
        assert not (tmp_path / "out_text_document.idx").exists()
    assert "going on after" in caplog.text
    summary = preprocess(_settings(model), [corpus], tmp_path / "out", 2, skip_bad_lines=True)
    assert (summary.documents, summary.bad_lines) == (3000, 1)
    assert "skipped" in caplog.text


@pytest.mark.usefixtures("small_blocks")
def test_other_settings_start_afresh(model: Path, corpus: Path, tmp_path: Path) -> None:
    with corpus.open("ab") as file:
        file.write(b"\n{}\n")
    with pytest.raises(UserError, match="has no key 'text'"):
        preprocess(_settings(model), [corpus], tmp_path / "out")
    settings = _settings(model, append_eod=True)
    preprocess(settings, [corpus], tmp_path / "out", skip_bad_lines=True)
    preprocess(settings, [corpus], tmp_path / "clean", skip_bad_lines=True)
    assert _read(tmp_path / "out_text_document") == _read(tmp_path / "clean_text_document")


def test_finished_output_is_not_overwritten(model: Path, corpus: Path, tmp_path: Path) -> None:
    preprocess(_settings(model), [corpus], tmp_path / "out")
    before = _read(tmp_path / "out_text_document")
    with pytest.raises(UserError, match=r"exists already; add --overwrite"):
        preprocess(_settings(model, append_eod=True), [corpus], tmp_path / "out")
    assert _read(tmp_path / "out_text_document") == before
    preprocess(_settings(model, append_eod=True), [corpus], tmp_path / "out", overwrite=True)
    assert _read(tmp_path / "out_text_document") != before


def test_an_empty_corpus(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    summary = preprocess(_settings(model), [tmp_path / "empty.jsonl"], tmp_path / "out")
    assert (summary.documents, summary.tokens) == (0, 0)
    assert len(IndexedDataset(tmp_path / "out_text_document")) == 0


def test_errors_of_the_command_are_one_line(tmp_path: Path, corpus: Path) -> None:
    command = [sys.executable, _TOOL, "--tokenizer-type", "Llama2Tokenizer", "--input", corpus]
    command += ["--tokenizer-model", tmp_path / "missing", "--output-prefix", tmp_path / "out"]
    done = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/missing: cannot be read: No such file or directory\n"


_DOCUMENTS = [["the bond", "", "rises"], ["", "yield"], [""], [], ["bond"]]


@pytest.mark.parametrize("append_eod", [False, True])
@pytest.mark.parametrize("bos", ["none", "document", "sentence"])
def test_beginning_and_end_tokens(model: Path, bos: str, append_eod: bool) -> None:
    encoder = DocumentEncoder(_settings(model, bos=bos, append_eod=append_eod))
    encode = encoder._tokenizer.encode
    expected = []
    for document in _DOCUMENTS:
        sequences = [encode(text) for text in document]
        if bos == "sentence":
            sequences = [[1, *ids] for ids in sequences]
        sequences = [ids for ids in sequences if ids]
        if bos == "document":
            sequences = [[1, *(sequences or [[]])[0]], *sequences[1:]]
        if append_eod and sequences:
            sequences[-1] = [*sequences[-1], 2]
        expected.append(sequences)
    found = encoder.encode_documents(_DOCUMENTS)
    flat = [ids for sequences in expected for ids in sequences]
    assert found.sequence_counts.tolist() == [len(sequences) for sequences in expected]
    assert found.lengths.tolist() == [len(ids) for ids in flat]
    assert found.tokens.tolist() == [token for ids in flat for token in ids]


def test_sentences_become_sequences(model: Path, tmp_path: Path) -> None:
    lines = [{"text": "The bond. 收益率上升。 It rises"}, {"text": ["One. Two.", "Three"]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = _settings(model, split_sentences=True)
    summary = preprocess(settings, [tmp_path / "a.jsonl"], tmp_path / "out")
    assert summary.prefixes == [tmp_path / "out_text_sentence"]
    dataset = IndexedDataset(summary.prefixes[0])
    assert np.diff(dataset.document_indices).tolist() == [3, 3]


def test_hugging_face_tokenizers_begin_as_they_do_themselves(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    settings = EncodingSettings("HuggingFaceTokenizer", tmp_path, append_eod=True)
    documents = DocumentEncoder(settings).encode_documents([["a a"], ["a"]])
    assert documents.tokens.tolist() == [0, 2, 2, 1, 0, 2, 1]
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(UserError, match="has no end token"):
        DocumentEncoder(settings)
