"""The fast encoder against sentencepiece itself, on tokenizers with many kinds of settings."""

import argparse
import io
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from dongwu_jax.data import segment_encoder, segment_table
from dongwu_jax.data.segment_encoder import SegmentEncoder
from dongwu_jax.data.tokenizers import SentencePieceTokenizer

_CHINESE = (
    "东吴证券研究所认为，公司上半年营业收入同比增长12.5%，净利润为3.2亿元。风险提示：行业竞争加剧。"
)
_SYMBOLS = ["<sep>", "ab c", "证券", "ー"]
_KINDS: dict[str, dict[str, Any]] = {
    "llama": {"byte_fallback": True, "remove_extra_whitespaces": False, "split_digits": True},
    "no_byte_fallback": {"remove_extra_whitespaces": False},
    "no_byte_fallback_low_coverage": {"character_coverage": 0.98},
    "nfkc": {"byte_fallback": True, "normalization_rule_name": "nmt_nfkc_cf"},
    "no_prefix": {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "suffix": {"treat_whitespace_as_suffix": True},
    "across_words": {"split_by_whitespace": False, "remove_extra_whitespaces": False},
    "symbols": {"user_defined_symbols": _SYMBOLS, "byte_fallback": True},
    "symbols_unknown": {
        "user_defined_symbols": _SYMBOLS,
        "control_symbols": ["<ctl>", "€"],
        "remove_extra_whitespaces": False,
    },
}
_FRAGMENTS = [*_SYMBOLS, " ", "  ", "\u2581", "<s>", "</s>", "<unk>", "<ctl>", "€", "\n", "\0"]
_FRAGMENTS += [
    "argument",
    "the ",
    "12",
    "証券",
    "亿元",
    "𠀀",
    "😀",
    "ﬁ",
    "\u3000",
    "\ufffd",
    "aaaa",
]
_TEXTS = st.lists(st.sampled_from(_FRAGMENTS) | st.text(max_size=4) | st.sampled_from(_CHINESE))


@pytest.fixture(scope="module", params=_KINDS)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SentencePieceTokenizer:
    """A small BPE tokenizer of one kind, of English and Chinese text."""
    english = [str(argparse.__doc__), str(textwrap.wrap.__doc__), str(json.__doc__)]
    lines = [line for text in english for line in text.splitlines()] + [_CHINESE] * 3
    model = io.BytesIO()
    kind: dict[str, Any] = {"normalization_rule_name": "identity"} | _KINDS[request.param]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        hard_vocab_limit=False,
        minloglevel=2,
        **kind,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return SentencePieceTokenizer(path)


def _check(encoder: SegmentEncoder, tokenizer: SentencePieceTokenizer, texts: list[str]) -> None:
    tokens, counts = encoder.encode_batch(texts)
    expected = [tokenizer.processor.encode(text) for text in texts]
    assert counts.tolist() == [len(ids) for ids in expected]
    assert tokens.tolist() == [token for ids in expected for token in ids]


def test_equals_sentencepiece_on_any_text(tokenizer: SentencePieceTokenizer) -> None:
    encoder = SegmentEncoder(tokenizer)

    @settings(max_examples=100, deadline=None, database=None)
    @given(st.lists(_TEXTS.map("".join), max_size=4))
    def check(texts: list[str]) -> None:
        _check(encoder, tokenizer, texts)

    check()


@pytest.mark.parametrize("key_base", [1, segment_table._KEY_BASE])  # 1: anagrams collide
def test_equals_sentencepiece_when_long_texts_are_cut_and_segments_forgotten(
    tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch, key_base: int
) -> None:
    monkeypatch.setattr(segment_encoder, "_WINDOW", 7)
    monkeypatch.setattr(segment_table, "_MAX_SEGMENTS", 20)
    monkeypatch.setattr(segment_table, "_MAX_REMEMBERED", 3)
    monkeypatch.setattr(segment_table, "_FIRST_TABLE_BITS", 1)
    monkeypatch.setattr(segment_table, "_KEY_BASE", key_base)
    monkeypatch.setattr(segment_encoder, "_MAX_CLASSES", 12)
    encoder = SegmentEncoder(tokenizer)

    @settings(max_examples=40, deadline=None, database=None)
    @given(st.lists(_TEXTS.map("".join).map(lambda text: text * 5), max_size=4))
    def check(texts: list[str]) -> None:
        _check(encoder, tokenizer, texts)

    check()


def test_other_kinds_of_model_are_left_to_sentencepiece(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([_CHINESE]),
        model_writer=model,
        model_type="unigram",
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "unigram.model").write_bytes(model.getvalue())
    assert not SegmentEncoder.supports(SentencePieceTokenizer(tmp_path / "unigram.model"))


def test_equals_sentencepiece_on_real_text(shared_data: Path) -> None:
    data = shared_data / "megatron" / "data"
    tokenizer = SentencePieceTokenizer(data / "tokenizers" / "mistral_v1_32k.model")
    for name in ("en", "zh", "edge"):
        lines = (data / "raw" / f"{name}.jsonl").read_bytes().splitlines()
        _check(SegmentEncoder(tokenizer), tokenizer, [json.loads(line)["text"] for line in lines])
