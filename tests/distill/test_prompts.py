"""Prompts are starts of their documents, the same every time, each under a name of its own."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthesis_runs import document, save_model

from dongwu_jax.data.tokenizer_training import train_sentencepiece
from dongwu_jax.distill.synthesis.cutting import TextCutter
from dongwu_jax.distill.synthesis.prompts import PromptMaker, Rejection, Request
from dongwu_jax.distill.synthesis.recipe import Recipe, Sampling
from dongwu_jax.distill.synthesis.templates import REWRITINGS, TEMPLATES, training_text

_SAMPLING = Sampling(64, 0.9, 0.95, 1.0)
_PATH = Path("corpus.jsonl")


@pytest.fixture(scope="module")
def cutters(tmp_path_factory: pytest.TempPathFactory) -> list[TextCutter]:
    """By a Hugging Face tokenizer, and by a SentencePiece one with bytes for rare characters."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train_sentencepiece([document(0)] * 5, folder / "tokenizer.model", 320)
    model = save_model(folder / "model")
    return [TextCutter(model), TextCutter(folder / "tokenizer.model")]


def _recipe(**changes: object) -> Recipe:
    values: dict[str, object] = {
        "text_key": "text",
        "template": "continue",
        "language": "auto",
        "prefix_tokens": (4, 12),
        "min_document_tokens": 0,
        "rounds": 3,
        "seed": 0,
        "limit": None,
        "documents_per_part": 10,
        "sampling": _SAMPLING,
    }
    return Recipe(**values | changes)  # type: ignore[arg-type]


def _requests(cutter: TextCutter, texts: list[str], **changes: object) -> list[Request | Rejection]:
    maker = PromptMaker(_recipe(**changes), cutter, {_PATH: _PATH.name})
    lines = [json.dumps({"text": text}).encode() for text in texts]
    return [made for n, line in enumerate(lines, 1) for made in maker.requests(_PATH, n, line)]


_TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), max_size=4)


@settings(max_examples=100, deadline=None)
@given(texts=_TEXTS)
def test_prefixes_of_any_text(cutters: list[TextCutter], texts: list[str]) -> None:
    for cutter in cutters:
        made = _requests(cutter, texts)
        assert made == _requests(cutter, texts)
        for each in made:
            number = int(each.source.rpartition(":")[2])
            if isinstance(each, Request):
                assert texts[number - 1].startswith(each.prefix)
                assert each.prefix.strip()
                assert 1 <= each.prefix_tokens <= 12
                assert 0 <= each.seed < 2**31
        ids = [each.id for each in made if isinstance(each, Request)]
        assert len(ids) == len(set(ids))


def test_lengths_fill_the_range(cutters: list[TextCutter]) -> None:
    for cutter in cutters:
        made = _requests(cutter, [document(n) for n in range(200)], prefix_tokens=(8, 16))
        lengths = [each.prefix_tokens for each in made if isinstance(each, Request)]
        assert len(lengths) == 600
        assert set(lengths) == set(range(8, 17))


def test_how_much_of_a_text_is_read_does_not_change_its_cuts(cutters: list[TextCutter]) -> None:
    text = "".join(document(n) for n in range(30))
    for cutter in cutters:
        few, many = cutter.cuts(text, 20), cutter.cuts(text, 2000)
        assert len(few.ends) == 20
        assert few.ends == many.ends[:20]
        assert few.clean == many.clean[:20]


@pytest.mark.parametrize("change", [{"seed": 1}, {"template": "summary"}])
def test_other_recipes_give_other_samples(cutters: list[TextCutter], change: dict) -> None:
    texts = [document(n) for n in range(5)]
    before = {each.id for each in _requests(cutters[0], texts) if isinstance(each, Request)}
    after = {
        each.id for each in _requests(cutters[0], texts, **change) if isinstance(each, Request)
    }
    assert len(before) == len(after) == 15
    assert not before & after


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (b'{"text": "xyz"}', "short", "fewer than 4"),
        (b'{"text": "a b c d e', "input", "corpus.jsonl:1: is not JSON"),
        (b'{"content": "a b c d e"}', "input", "has no key 'text'"),
        (b'{"text": 5}', "input", "must be a string"),
        (b'["a"]', "input", "must be a JSON object"),
        (b'{"text": "\xff"}', "input", "is not UTF-8"),
        (b'{"text": "                            "}', "short", "white space"),
    ],
)
def test_documents_without_prompts(
    cutters: list[TextCutter], line: bytes, kind: str, reason: str
) -> None:
    maker = PromptMaker(_recipe(rounds=1), cutters[0], {_PATH: "corpus.jsonl"})
    (made,) = maker.requests(_PATH, 1, line)
    assert isinstance(made, Rejection)
    assert made.kind == kind
    assert reason in made.reason


def test_the_least_length_of_a_document(cutters: list[TextCutter]) -> None:
    texts = [document(0)[:40], document(0)]
    made = _requests(cutters[0], texts, min_document_tokens=60, rounds=1)
    assert isinstance(made[0], Rejection)
    assert "fewer than 60" in made[0].reason
    assert isinstance(made[1], Request)


@pytest.mark.parametrize("template", REWRITINGS)
@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("第一条 为了规范公司的组织和行为。第二条 保护公司、股东的权益。" * 9, "auto", "zh"),
        ("Article 1 governs the company. Article 2 protects it. " * 9, "auto", "en"),
        ("Article 1 governs the company. Article 2 protects it. " * 9, "zh", "zh"),
    ],
)
def test_rewriting_asks_in_the_language_for_whole_sentences(
    cutters: list[TextCutter], template: str, text: str, language: str, expected: str
) -> None:
    changes = {"template": template, "language": language, "prefix_tokens": (90, 120)}
    for made in _requests(cutters[0], [text], **changes):
        assert isinstance(made, Request)
        assert text.startswith(made.prefix)
        assert made.prefix[-1] in ".。"
        assert made.message is not None
        asked = REWRITINGS[template].messages[expected]
        assert made.message == asked.replace("{passage}", made.prefix)
        assert asked.count("{passage}") == 1


def test_what_is_trained_on() -> None:
    texts = {template: training_text(template, "Passage.", "\nAnswer. ") for template in TEMPLATES}
    assert texts["continue"] == "Passage.\nAnswer. "
    assert texts["question_answer"] == "Passage.\n\nAnswer."
    assert texts["rephrase"] == texts["summary"] == texts["textbook"] == "Answer."
