"""Sentence boundaries in English and Chinese."""

from hypothesis import given
from hypothesis import strategies as st

from dongwu_jax.data.sentences import split_sentences


def test_english() -> None:
    text = 'Dr. Li agreed. "Really?" she asked. It fell by 3.5 percent! The end'
    assert split_sentences(text) == [
        "Dr. Li agreed.",
        '"Really?" she asked.',
        "It fell by 3.5 percent!",
        "The end",
    ]


def test_chinese() -> None:
    assert split_sentences("净利润3.2亿元。“风险？”他说！ 完") == [
        "净利润3.2亿元。",
        "“风险？”",
        "他说！",
        "完",
    ]


def test_newlines() -> None:
    text = "One.\n\nTwo. Three.\n"
    assert split_sentences(text) == ["One.", "Two.", "Three."]
    assert split_sentences(text, keep_newlines=True) == ["One.\n\n", "Two.", "Three.\n"]


def test_nothing() -> None:
    assert split_sentences("") == split_sentences(" \n ") == []


@given(st.text(alphabet='ab .!?。！？"”\n'), st.booleans())
def test_only_white_space_is_lost(text: str, keep_newlines: bool) -> None:
    sentences = split_sentences(text, keep_newlines)
    assert "".join("".join(sentences).split()) == "".join(text.split())
