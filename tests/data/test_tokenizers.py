"""Tokenizers against the libraries they come from."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from dongwu_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
    tokenizer_files,
)
from dongwu_jax.errors import UserError

_TEXT = "The bond yields 3%. 债券收益率为百分之三。"
_BOS, _EOS = "<|begin|>", "<|end|>"


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([_TEXT] * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("sp") / "small.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE tokenizer that begins with BOS, and truncates as some files do."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[_BOS, _EOS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, 0)]
    )
    tokenizer.enable_truncation(8)
    folder = tmp_path_factory.mktemp("hf")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": _BOS}, "eos_token": _EOS, "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_sentencepiece_equals_the_library(model_file: Path) -> None:
    ours = load_tokenizer(model_file)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    assert isinstance(ours, SentencePieceTokenizer)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.pad_id) == (320, 1, 2, None)

    @settings(max_examples=50, deadline=None, database=None)
    @given(st.text() | st.just(_TEXT))
    def check(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))

    check()


def test_hugging_face_equals_transformers(hf_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(hf_folder)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(hf_folder / "tokenizer.json"), bos_token=_BOS, eos_token=_EOS
    )
    assert isinstance(ours, HuggingFaceTokenizer)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (len(theirs), 0, 1)
    assert ours.pad_id is None
    assert ours.prepends_bos
    for text in (_TEXT, _TEXT * 20, "", " a  b\n", f"x{_EOS}y", "😀"):
        assert [ours.bos_id, *ours.encode(text)] == theirs(text).input_ids
        assert ours.decode(ours.encode(text)) == text.replace(_EOS, "")


def test_other_special_tokens_are_not_taken_for_bos(hf_folder: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(hf_folder / "tokenizer.json"))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"$A {_EOS}", special_tokens=[(_EOS, 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"adds the tokens \[1\] .* --bos"):
        _ = HuggingFaceTokenizer(tmp_path / "tokenizer.json").prepends_bos


@pytest.mark.parametrize("kind", ["model_file", "model_folder", "hf_file", "hf_folder"])
def test_copied_files_give_the_same_tokenizer(
    kind: str, model_file: Path, hf_folder: Path, tmp_path: Path
) -> None:
    source = {
        "model_file": model_file,
        "model_folder": model_file.parent,
        "hf_file": hf_folder / "tokenizer.json",
        "hf_folder": hf_folder,
    }[kind]
    copy = tmp_path / "tokenizer"
    copy.mkdir()
    for file in tokenizer_files(source):
        shutil.copy(file, copy)
    original, copied = load_tokenizer(source), load_tokenizer(copy)
    assert type(copied) is type(original)
    assert copied.encode(_TEXT) == original.encode(_TEXT)
    assert (copied.bos_id, copied.eos_id) == (original.bos_id, original.eos_id)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing", "no such tokenizer"),
        (lambda folder: folder, "exactly one SentencePiece .model file, found none"),
        (lambda folder: _file(folder / "tokenizer.txt"), "a tokenizer is"),
        (lambda folder: _file(folder / "a.model"), "is not a SentencePiece model"),
        (lambda folder: _file(folder / "tokenizer.json"), "is not a Hugging Face tokenizer"),
    ],
)
def test_what_is_no_tokenizer(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_tokenizer(make(tmp_path))


def test_a_special_token_outside_the_vocabulary(hf_folder: Path, tmp_path: Path) -> None:
    shutil.copy(hf_folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(UserError, match=r"tokenizer_config.json: eos_token='</s>' is not in"):
        load_tokenizer(tmp_path)


def _file(path: Path) -> Path:
    path.write_bytes(b"not a tokenizer")
    return path
