"""Exact and near duplicates, held against exact sets of passages."""

import random
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dongwu_jax.distill.corpus.duplicates import DuplicateIndex, Fingerprinter, shingles
from dongwu_jax.distill.corpus.text import normalized
from dongwu_jax.errors import UserError

pytest.importorskip("datasketch")


@pytest.fixture(scope="module")
def fingerprint() -> Fingerprinter:
    return Fingerprinter(near=True)


def _text(seed: int, characters: int = 600) -> str:
    return "".join(
        random.Random(seed).choices([chr(0x4E00 + n) for n in range(2000)], k=characters)
    )


def _jaccard(first: str, second: str) -> float:
    one, other = shingles(normalized(first)), shingles(normalized(second))
    return len(one & other) / len(one | other)


def _edited(text: str, edits: int, seed: int) -> str:
    rng = random.Random(seed)
    characters = list(text)
    for place in rng.sample(range(len(characters)), edits):
        characters[place] = "改"
    return "".join(characters)


def test_estimates_are_close_to_exact_similarities(fingerprint: Fingerprinter) -> None:
    errors = []
    for seed in range(60):
        text = _text(seed)
        edited = _edited(text, 5 * (seed % 12), seed)
        signatures = [fingerprint(version).signature for version in (text, edited)]
        estimate = np.mean(signatures[0] == signatures[1])
        errors.append(estimate - _jaccard(text, edited))
    # 120 hashes: a standard deviation of at most sqrt(0.25 / 120) = 0.046
    assert np.abs(errors).max() < 4 * 0.046
    assert abs(np.mean(errors)) < 4 * 0.046 / np.sqrt(60)


def test_near_duplicates_are_found_and_others_are_not(fingerprint: Fingerprinter) -> None:
    index = DuplicateIndex(0.7)
    texts = [_text(seed) for seed in range(60)]
    for number, text in enumerate(texts):
        assert index.near(fingerprint(text)) is None
        index.add(fingerprint(text), str(number))
    similar = [_edited(text, 12, seed) for seed, text in enumerate(texts)]
    assert min(map(_jaccard, texts, similar)) > 0.8
    found = [index.near(fingerprint(text)) for text in similar]
    hits = [found[0] for found in found if found]
    assert len(hits) >= 58
    assert all(found is None or found[0] == str(n) for n, found in enumerate(found))
    other = [_edited(text, 90, seed) for seed, text in enumerate(texts)]
    assert max(map(_jaccard, texts, other)) < 0.4
    assert not any(index.near(fingerprint(text)) for text in other)


def test_equal_texts_need_not_be_equal_to_the_letter(fingerprint: Fingerprinter) -> None:
    index = DuplicateIndex(0.7)
    index.add(fingerprint("The Bank（中国） 100%"), "first")
    assert index.exact(fingerprint("the bank (中国)１００")) == "first"
    assert index.exact(fingerprint("the banks (中国)100")) is None


def test_short_texts_have_no_near_duplicates(fingerprint: Fingerprinter) -> None:
    index = DuplicateIndex(0.7)
    index.add(fingerprint("一二三"), "first")
    index.add(fingerprint(""), "second")
    assert index.near(fingerprint("一二三")) is None
    assert index.exact(fingerprint("一二三。")) == "first"


@given(st.lists(st.text("abc", min_size=5, max_size=12), max_size=30))
def test_what_is_kept_has_no_duplicates(texts: list[str]) -> None:
    def kept(texts: list[str]) -> list[str]:
        index, fingerprint, result = DuplicateIndex(0.5), Fingerprinter(near=True), []
        for text in texts:
            mark = fingerprint(text)
            if index.exact(mark) is None and index.near(mark) is None:
                index.add(mark, text)
                result.append(text)
        return result

    once = kept(texts)
    assert kept(once) == once
    assert len(set(once)) == len(once)


def test_without_the_package_near_duplicates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"pip install 'dongwu_jax\[distill\]'"):
        DuplicateIndex(0.7)
    with pytest.raises(UserError, match="--near-duplicates 1"):
        Fingerprinter(near=True)
    assert DuplicateIndex(1).near(Fingerprinter(near=False)("some text")) is None
