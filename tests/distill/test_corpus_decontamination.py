"""Questions of evaluation sets are found in text; text of their kind is not."""

import csv
import json
import random
import re
from pathlib import Path

import pytest
import zstandard

from dongwu_jax.distill.corpus.decontamination import Question, QuestionIndex, read_evaluation_sets
from dongwu_jax.errors import UserError

_CHARACTERS = "".join(map(chr, random.Random(0).sample(range(0x4E00, 0x9FA5), 400)))
_QUESTION, _OTHER = _CHARACTERS[:100], _CHARACTERS[100:]


def _share(text: str, question: str = _QUESTION, choices: str = "") -> float | None:
    match = QuestionIndex([Question("q", question, choices)], 13, 0.5).match(text)
    return match and match.share


def test_half_a_question_is_the_limit() -> None:
    assert _share(f"前{_QUESTION[:50]}后") is None
    assert _share(f"前{_QUESTION[:51]}后") == 0.51
    assert _share(f"前 {_QUESTION[10:40]}，{_QUESTION[40:90]} 后") == 0.8
    assert _share(_OTHER) is None


def test_a_changed_character_hides_nothing() -> None:
    changed = _QUESTION[:45] + _OTHER[0] + _QUESTION[46:]
    assert _share(changed) == 0.99
    every = "".join(_OTHER[0] if n % 13 == 12 else c for n, c in enumerate(_QUESTION))
    assert _share(every) is None  # no passage of 13 is left


def test_short_questions_are_found_with_their_choices() -> None:
    question, choices = _QUESTION[:8], "A" + _QUESTION[8:20] + "B" + _QUESTION[20:30]
    assert _share(question + choices, question, choices.casefold()) == 1.0
    assert _share(question, question, choices.casefold()) is None
    index = QuestionIndex([Question("q", question)], 13, 0.5)
    assert (index.questions, index.too_short) == ([], 1)


def test_all_kinds_of_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "set/val").mkdir(parents=True)
    (tmp_path / "set/val/law_val.csv").write_text(
        "\ufeffid,question,A,B\n0,什么是央行？,甲,乙\n1,何谓利率,,\n", encoding="utf-8"
    )
    (tmp_path / "q.jsonl").write_text('{"question": "One?", "text": "no"}\n\n{"text": "Two"}\n')
    (tmp_path / "q.jsonl.zst").write_bytes(
        zstandard.compress(b'{"question": ["a", "b"], "score": NaN}\n')
    )
    (tmp_path / "q.txt").write_text("Three\n\nFour\n")
    paths = [tmp_path / name for name in ("set", "q.jsonl", "q.jsonl.zst", "q.txt")]
    assert read_evaluation_sets(paths) == [
        Question("set/val/law_val.csv:1", "什么是央行", "a甲b乙"),
        Question("set/val/law_val.csv:2", "何谓利率"),
        Question("q.jsonl:1", "one"),
        Question("q.jsonl:3", "two"),
        Question("q.jsonl.zst:1", "ab"),
        Question("q.txt:1", "three"),
        Question("q.txt:3", "four"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "there is no such file or folder"),
        ("a.pdf", b"x", "must be a folder, .csv, .jsonl or .txt"),
        ("a.txt", b"\n", "holds no questions"),
        ("a.txt", b"\xff\n", "a.txt:1: is not UTF-8"),
        ("a.csv", b"id,frage\n", "has no column question (its columns: id, frage)"),
        ("a.csv", b"", "has no column question (its columns: none)"),
        ("a.csv", b'question\n"x\n', "cannot be read"),
        ("a.jsonl", b'{"frage": "x"}\n', "has no key question or text (its keys: frage)"),
        ("a.jsonl", b"{\n", "a.jsonl:1: is not JSON"),
        ("a.jsonl", b'{"question": 3}\n', "must be a string or a list of strings"),
    ],
)
def test_what_is_no_evaluation_set(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_evaluation_sets([tmp_path / name])


def test_an_empty_folder_is_no_evaluation_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no CSV files in dev, val or test"):
        read_evaluation_sets([tmp_path])


def test_fineval_is_found_where_words_do_not_find_it(shared_data: Path) -> None:
    documents = [
        json.loads(line)["text"]
        for line in (shared_data / "finance_zh/corpus.jsonl").read_text().splitlines()[:100]
    ]
    questions = read_evaluation_sets([shared_data / "fineval"])
    index = QuestionIndex(questions, 13, 0.5)
    assert (len(index.questions), index.too_short) == (34 * 5 + 1151, 0)
    assert not [text for text in documents if index.match(text)]

    long_enough = [question for question in questions if len(question.text) >= 13]
    assert len(long_enough) / len(questions) > 0.95
    for number, question in enumerate(long_enough):
        host = documents[number % len(documents)]
        found = QuestionIndex([question], 13, 0.5).match(host[:200] + question.text + host[200:400])
        assert found
        assert found.share == 1.0

    # What recipes for English do: ten words in a row.
    words = [len(re.findall(r"\w+", text)) for text in _raw_questions(shared_data / "fineval/val")]
    assert sum(count >= 10 for count in words) / len(words) < 0.1


def _raw_questions(folder: Path) -> list[str]:
    texts = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8-sig", newline="") as file:
            texts += [row["question"] for row in csv.DictReader(file)]
    return texts
