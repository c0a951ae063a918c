"""Evaluation questions in text, found by passages of characters.

Words do not do for Chinese: a clause without spaces is one word, and few questions have ten.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import orjson

from dongwu_jax.data.jsonl import parse_texts, read_lines
from dongwu_jax.distill.corpus.text import normalized
from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_small_file

_SPLITS = ("dev", "val", "test")  # of FinEval
_KEY = "question"
_CHOICES = "ABCDEFGH"


@dataclass(frozen=True)
class Question:
    """One question of an evaluation set.

    Attributes:
        name: file and line, or number in it.
        text: normalised.
        choices: normalised, with their letters; empty: unknown.
    """

    name: str
    text: str
    choices: str = ""


@dataclass(frozen=True)
class Match:
    """A question that is in a text.

    Attributes:
        question: its name.
        share: of the question's characters in passages that both have.
    """

    question: str
    share: float


class QuestionIndex:
    """Finds questions in texts.

    A question counts as found when more than a share of it lies in passages that the text has,
    too. (The longest passage in common alone would miss a question with one character changed in
    its middle, and finds none that this does not.) A question that is shorter than a passage is
    looked for together with its choices.

    Args:
        characters: length of the passages.
        share: of the question.

    Attributes:
        questions: those that can be found.
        too_short: number of the others.
    """

    def __init__(self, questions: Iterable[Question], characters: int, share: float) -> None:
        self._characters, self._share = characters, share
        self.questions: list[Question] = []
        self.too_short = 0
        self._by_passage: dict[str, list[int]] = {}
        for question in questions:
            if len(question.text) < characters:
                question = Question(question.name, question.text + question.choices)
            passages = set(self._passages(question.text))
            if not passages:
                self.too_short += 1
                continue
            for passage in passages:
                self._by_passage.setdefault(passage, []).append(len(self.questions))
            self.questions.append(question)

    def match(self, text: str) -> Match | None:
        """The first question, in the order of the evaluation sets, that is in a text."""
        passages = self._by_passage.keys() & self._passages(normalized(text))
        candidates = {number for passage in passages for number in self._by_passage[passage]}
        for number in sorted(candidates):
            question = self.questions[number]
            share = self._covered(question.text, passages) / len(question.text)
            if share > self._share:
                return Match(question.name, share)
        return None

    def _covered(self, question: str, passages: Set[str]) -> int:
        """Characters of a question in some of these passages."""
        covered = end = 0
        for start, passage in enumerate(self._passages(question)):
            if passage in passages:
                covered += start + self._characters - max(end, start)
                end = start + self._characters
        return covered

    def _passages(self, text: str) -> list[str]:
        size = self._characters
        return [text[start : start + size] for start in range(len(text) - size + 1)]


def read_evaluation_sets(paths: Sequence[Path]) -> list[Question]:
    """The questions of evaluation sets, in the order of the paths.

    Args:
        paths: folders as FinEval's, with CSV files in dev, val and test; CSV files with a column
            `question` and perhaps A, B, ...; .jsonl (also .gz, .zst) with a key `question` or
            `text`; text files of a question a line.

    Raises:
        UserError: a path holds no questions or cannot be read.
    """
    questions: list[Question] = []
    for path in paths:
        before = len(questions)
        for file in _files(path):
            # Named from the set's folder on: the same wherever the set lies.
            name = f"{path.name}/{file.relative_to(path)}" if path.is_dir() else path.name
            for place, text, choices in _texts(file):
                question = Question(f"{name}:{place}", normalized(text), normalized(choices))
                questions.append(question)
        if len(questions) == before:
            raise UserError(f"--decontaminate {path}: holds no questions")
    return questions


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"--decontaminate {path}: there is no such file or folder")
        return [path]
    files = [file for split in _SPLITS for file in sorted((path / split).glob("*.csv"))]
    if not files:
        raise UserError(
            f"--decontaminate {path}: has no CSV files in dev, val or test, as FinEval's folder "
            "has; name that folder, or .csv, .jsonl or .txt files"
        )
    return files


def _texts(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, or number from 1 in a CSV file, text and choices of each question."""
    suffix = path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix
    if suffix == ".csv":
        for number, (text, choices) in enumerate(_read_csv(path), 1):
            yield number, text, choices
    elif suffix == ".txt":
        for _, number, line in read_lines([path]):
            try:
                yield number, line.decode(), ""
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: is not UTF-8; convert the file") from None
    elif suffix == ".jsonl":
        for _, number, line in read_lines([path]):
            yield number, _json_question(line, path, number), ""
    else:
        raise UserError(f"--decontaminate {path}: must be a folder, .csv, .jsonl or .txt")


def _json_question(line: bytes, path: Path, number: int) -> str:
    parse_texts(line, [], path, number)
    try:
        keys = orjson.loads(line).keys()
    except orjson.JSONDecodeError:  # NaN and the like, which the reader above lets pass
        keys = {_KEY}
    if _KEY not in keys and "text" not in keys:
        present = ", ".join(list(keys)[:10]) or "none"
        raise UserError(f"{path}:{number}: has no key {_KEY} or text (its keys: {present})")
    key = _KEY if _KEY in keys else "text"
    return "\n".join(parse_texts(line, [key], path, number)[0])


def _read_csv(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = read_small_file(path).decode("utf-8-sig")  # some begin with a mark
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = reader.fieldnames or ()
        if _KEY not in columns:
            present = ", ".join(columns)[:200] or "none"
            raise UserError(f"{path}: has no column {_KEY} (its columns: {present})")
        for row in reader:
            choices = "".join(f"{name} {row[name]}" for name in _CHOICES if row.get(name))
            yield row[_KEY] or "", choices
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
