"""Filters of single samples, on both sides of their limits."""

import difflib
import json
import random
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dongwu_jax.distill.corpus.filters import (
    Limits,
    SampleFilter,
    compression,
    han_share,
    repeated_lines,
    repeated_passages,
)
from dongwu_jax.distill.corpus.originals import cut_like
from dongwu_jax.distill.corpus.records import Sample, parse_sample
from dongwu_jax.distill.corpus.text import normalized, passage_over, share_passage, trimmed
from dongwu_jax.errors import UserError

_WORDS = random.Random(0).sample(range(0x4E00, 0x9FA5), 3000)
CHINESE = "".join(map(chr, _WORDS))  # no passage comes twice
ENGLISH = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz ", k=3000))


def _sample(completion: str, **fields: object) -> Sample:
    record = {"prefix": "", "completion": completion, "completion_tokens": 100} | fields
    return parse_sample(orjson.dumps(record), Path("part.jsonl"), 1)


def _reason(
    completion: str, limits: Limits | None = None, rest: str | None = None, **fields: object
) -> str | None:
    fault = SampleFilter(limits or Limits()).fault(_sample(completion, **fields), rest)
    return fault and fault.reason


def test_real_prose_passes() -> None:
    assert _reason(CHINESE[:500], prefix=CHINESE[500:600], rest=CHINESE[1000:2000]) is None
    assert _reason(ENGLISH[:500], prefix=ENGLISH[500:600]) is None


@pytest.mark.parametrize(("reason", "expected"), [("stop", None), ("error", "unfinished")])
def test_what_the_generator_did_not_finish(reason: str, expected: str | None) -> None:
    assert _reason(CHINESE[:500], finish_reason=reason) == expected


def test_length_counts_what_is_left_after_trimming() -> None:
    assert _reason(CHINESE[:100], completion_tokens=64) is None
    assert _reason(CHINESE[:100], completion_tokens=63) == "short"
    text = CHINESE[:63] + "。" + CHINESE[63:99]  # 64 of 100 characters are left
    assert _reason(text, finish_reason="length", completion_tokens=100) is None
    assert _reason(text, finish_reason="length", completion_tokens=98) == "short"
    assert _reason(text, finish_reason="stop", completion_tokens=64) is None
    assert _reason(" \n", Limits(min_new_tokens=0)) == "short"
    assert _reason("字", Limits(min_new_tokens=0), completion_tokens=0) == "short"


def test_length_is_estimated_where_the_record_does_not_say() -> None:
    for text, expected in ((CHINESE[:64], None), ("word " * 32 + CHINESE[:31], "short")):
        line = orjson.dumps({"text": text})
        fault = SampleFilter(Limits()).fault(parse_sample(line, Path("x"), 1), None)
        assert (fault and fault.reason) == expected


def test_broken_characters() -> None:
    text = CHINESE[:200] + "\ufffd"
    assert _reason(text) == "mojibake"
    assert _reason(text, Limits(max_replacement_characters=1)) is None


@pytest.mark.parametrize(
    "phrase",
    ["作为一个ＡＩ，", "抱歉，我无法", "As an AI language model", "I’m sorry, but I", "<|im_end|>"],
)
def test_remains_of_chats(phrase: str) -> None:
    assert _reason(CHINESE[:200] + phrase + CHINESE[200:300]) == "boilerplate"
    assert _reason(CHINESE[:200] + phrase, Limits(phrases=("另一句",))) != "boilerplate"
    assert _reason(CHINESE[:200] + phrase, Limits(phrases=())) != "boilerplate"


def test_language_is_the_prefixs() -> None:
    for chinese, expected in ((70, None), (69, "language")):
        text = CHINESE[:chinese] + "x" + ENGLISH.replace(" ", "")[: 99 - chinese]
        assert han_share(text) == chinese / 100
        assert _reason(text, prefix=CHINESE[200:300]) == expected
        assert _reason(text, Limits(max_language_difference=1), prefix=CHINESE[200:300]) is None
    assert _reason(ENGLISH[:300], prefix=CHINESE[:300]) == "language"
    assert _reason(ENGLISH[:300], prefix="2023: 1,234.5") is None  # no letters, no language


def test_repeated_passages() -> None:
    text = CHINESE[:600]
    assert repeated_passages(text + text[:400]) == 0.4
    assert _reason(text + text[:400]) is None
    assert _reason(text[:599] + text[:401]) == "repeated_passages"
    assert repeated_passages(text + text[:19]) == 0
    assert repeated_passages("") == 0
    assert repeated_passages("a\n" + " " * 500 + "b") == 0  # indentation


def test_compression() -> None:
    text = CHINESE[:100] * 4
    assert compression(text) > 3
    limits = Limits(max_repeated_passages=1)
    ratio = compression(text)
    assert _reason(text, Limits(max_repeated_passages=1, max_compression=ratio)) is None
    below = Limits(max_repeated_passages=1, max_compression=ratio - 0.01)
    assert _reason(text, below) == "compressible"
    assert _reason("和" * 300, limits) == "compressible"


def test_repeated_lines() -> None:
    lines = [CHINESE[n : n + 15] for n in range(0, 105, 15)]
    assert repeated_lines("\n\n".join([*lines, *lines[:3]])) == pytest.approx(0.3)
    assert _reason("\n".join([*lines, *lines[:3]])) is None
    assert _reason("\n".join([*lines, *lines[:4]])) == "repeated_lines"


def test_copies_of_the_source() -> None:
    rest, other = CHINESE[1000:2000], CHINESE[2000:3000]
    assert _reason(rest[:80] + other[:20], rest=rest) is None
    assert _reason(rest[:81] + other[:19], rest=rest) == "copied"
    assert _reason(other[:19] + rest[30:111], rest=rest) == "copied"
    assert _reason(rest[:100], Limits(max_copied=1), rest=rest) is None
    assert _reason(rest[:100], rest=None) is None
    # A rewriting may not be the passage itself; how the document goes on is no matter.
    asked = {"template": "rephrase", "prefix": rest[:200]}
    assert _reason(rest[:150], rest=other, **asked) == "copied"
    assert _reason(other[:150], rest=other, **asked) is None


@given(st.text("ab。", max_size=60), st.text("ab。", max_size=60), st.integers(1, 60))
def test_shared_passages_are_those_that_difflib_finds(first: str, second: str, length: int) -> None:
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    longest = matcher.find_longest_match().size
    assert share_passage(first, second, length) == (longest >= length)


@given(st.integers(0, 100), st.integers(1, 400))
def test_more_than_a_share(percent: int, characters: int) -> None:
    least = passage_over(percent / 100, characters)
    assert least * 100 > percent * characters >= (least - 1) * 100


@given(st.text("ab 。！？.!?\n”'\",，", max_size=80))
def test_trimming_shortens_once(text: str) -> None:
    short = trimmed(text)
    assert text.startswith(short)
    assert trimmed(short) == short


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("他说：“可以。”然后走", "他说：“可以。”"),
        ("It is 3.5 of it. And th", "It is 3.5 of it."),
        ('He said "no." And', 'He said "no."'),
        ("a wrapped\nline without end", ""),
        ("a heading\n\nand te", "a heading\n\n"),
        ("第一章 总则\n为了规", "第一章 总则\n"),
        ("没有句末", ""),
    ],
)
def test_sentences_end_where_a_reader_sees_it(text: str, expected: str) -> None:
    assert trimmed(text) == expected


@given(st.text("ab。\n", max_size=200), st.integers(0, 200))
def test_a_control_is_about_as_long(rest: str, characters: int) -> None:
    cut = cut_like(rest, characters)
    assert rest.startswith(cut)
    if len(rest) > characters:
        assert abs(len(cut) - characters) <= characters * 0.1
    else:
        assert cut == rest


def test_a_control_ends_with_a_sentence_if_one_is_near() -> None:
    assert cut_like("字" * 94 + "。" + "字" * 50, 100) == "字" * 94 + "。"
    assert cut_like("字" * 50 + "。" + "字" * 99, 100) == "字" * 50 + "。" + "字" * 49


def test_normalised_text_is_letters_and_digits() -> None:
    assert normalized("Ａ、 b＿c\n（１）ﬁ。") == "abc1fi"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"completion": 3}, "completion must be a string, not 3"),
        ({"id": "x"}, r"has no completion and no text \(its keys: id\)"),
        ({"completion": "x", "prefix": None}, "prefix must be a string, not None"),
        ({"completion": "x", "completion_tokens": "3"}, "completion_tokens=3: must be a whole"),
        ({"completion": "x", "template": "poem"}, "template=poem: must be one of continue"),
        ([1], "must be a JSON object, not a list"),
    ],
)
def test_records_of_another_kind_are_explained(record: object, message: str) -> None:
    with pytest.raises(UserError, match=f"^part.jsonl:7: .*{message}"):
        parse_sample(orjson.dumps(record), Path("part.jsonl"), 7)


def test_a_text_alone_is_taken_as_it_is() -> None:
    sample = parse_sample(b'{"text": "a b", "score": NaN}', Path("x.jsonl"), 3)
    assert (sample.id, sample.prefix, sample.text, sample.tokens) == ("x.jsonl:3", "", "a b", 2)


def test_numbers_that_only_python_reads_are_no_obstacle() -> None:
    line = b'{"text": "a b", "score": NaN, "number": 123456789012345678901234567890}\n'
    written = json.loads(parse_sample(line, Path("x.jsonl"), 1).line())
    assert (written["text"], written["number"]) == ("a b", 123456789012345678901234567890)
