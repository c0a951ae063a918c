"""Passkey retrieval (Mohtashami and Jaggi 2023): a number hidden in filler, asked for at the end.

The answer counts if greedy decoding would write it: each of its tokens is the likeliest after the
ones before, which one forward pass tells.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from dongwu_jax.data.bos import beginning_ids
from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.scoring import Scorer
from dongwu_jax.evaluate.texts import AnyTokenizer

Language = Literal["en", "zh"]
_SHAPES = 128  # lengths are rounded up to a multiple


@dataclass(frozen=True)
class _Wording:
    instruction: str
    filler: str  # repeated
    key: str
    question: str
    answer: str


_WORDINGS: dict[Language, _Wording] = {
    "en": _Wording(
        "A pass key is hidden in a lot of irrelevant text. Find it and remember it. "
        "You will be asked for it.\n",
        " The grass is green. The sky is blue. The sun is yellow. Here we go. "
        "There and back again.",
        " The pass key is {key}. Remember it. {key} is the pass key.",
        "\nWhat is the pass key? The pass key is",
        " {key}",
    ),
    "zh": _Wording(
        "下面的许多无关文字中藏着一个口令。请找到它并记住它，最后会问你口令是什么。\n",
        "草是绿色的。天空是蓝色的。太阳是黄色的。我们出发吧。去了又回来。",
        "口令是{key}。请记住它。{key}就是口令。",
        "\n口令是什么？口令是",
        "{key}",
    ),
}


@dataclass(frozen=True)
class Case:
    """One text with its question and answer.

    Attributes:
        length: that was asked for; the text has as many tokens or a few less.
        depth: where the key is: 0 at the beginning, 1 just before the question.
        tokens: int32 [tokens]; those from `answer` on are to be found.
    """

    length: int
    depth: float
    tokens: np.ndarray
    answer: int


@dataclass(frozen=True)
class Retrieval:
    """Keys that were found at one length and depth."""

    length: int
    depth: float
    found: int
    trials: int


def even_depths(count: int) -> list[float]:
    """Depths from 0 to 1, both included."""
    return np.linspace(0, 1, count).round(3).tolist()


def make_cases(
    tokenizer: AnyTokenizer,
    lengths: Sequence[int],
    depths: Sequence[float],
    trials: int,
    language: Language = "en",
    seed: int = 0,
) -> list[Case]:
    """Texts of each length and depth with `trials` random keys of five digits.

    Args:
        seed: the same one gives the same keys, whatever else is asked for.

    Raises:
        UserError: a length has no room for key and question.
    """
    cases = []
    for length in lengths:
        sentences = _fitting(tokenizer, _WORDINGS[language], length)
        for depth in depths:
            rng = np.random.default_rng([seed, length, round(1000 * depth)])
            for key in rng.integers(10_000, 100_000, trials).tolist():
                tokens, answer = _encode(tokenizer, _WORDINGS[language], key, sentences, depth)
                cases.append(Case(length, depth, np.array(tokens, np.int32), answer))
    return cases


def _fitting(tokenizer: AnyTokenizer, wording: _Wording, length: int) -> int:
    """How often the filler can be repeated."""

    def size(sentences: int) -> int:
        # Of keys of five digits those without repetitions take the most tokens.
        return len(_encode(tokenizer, wording, 95_173, sentences, 0.5)[0])

    smallest, each = size(0), (size(64) - size(32)) / 32
    if smallest > length:
        raise UserError(
            f"--lengths {length}: key and question alone take {smallest} tokens; ask for more"
        )
    sentences = int((length - smallest) / each)
    while sentences and size(sentences) > length:
        sentences -= 1
    return sentences


def _encode(
    tokenizer: AnyTokenizer, wording: _Wording, key: int, sentences: int, depth: float
) -> tuple[list[int], int]:
    """A case's tokens, and where the answer begins in them."""
    before = round(depth * sentences)
    text = wording.instruction + wording.filler * before + wording.key.format(key=key)
    text += wording.filler * (sentences - before) + wording.question
    start = beginning_ids(tokenizer)
    asked = start + tokenizer.encode(text)
    tokens = start + tokenizer.encode(text + wording.answer.format(key=key))
    # The last token of the question may have become another one, with the answer behind it.
    answer = next(
        (place for place, (a, b) in enumerate(zip(asked, tokens, strict=False)) if a != b),
        len(asked),
    )
    return tokens, answer


def measure(
    scorer: Scorer, cases: Sequence[Case], progress: Callable[[int], None] = lambda tokens: None
) -> list[Retrieval]:
    """How often the model finds the key, at each length and depth.

    Args:
        cases: as `make_cases` orders them.
        progress: called with the number of tokens read since the last call.
    """
    found: list[bool] = []
    for _, group in groupby(cases, key=lambda case: case.length):
        found += _answers(scorer, list(group), progress)
    results = []
    of_cell = groupby(
        zip(cases, found, strict=True), key=lambda pair: (pair[0].length, pair[0].depth)
    )
    for (length, depth), cell in of_cell:
        rights = [right for _, right in cell]
        results.append(Retrieval(length, depth, sum(rights), len(rights)))
    return results


def _answers(scorer: Scorer, cases: list[Case], progress: Callable[[int], None]) -> Iterator[bool]:
    """Whether each answer would be written; all cases have about one length."""
    longest = max(len(case.tokens) for case in cases) - 1
    width = -(-longest // _SHAPES) * _SHAPES
    rows = scorer.rows_for(len(cases), width)
    for first in range(0, len(cases), rows):
        batch = cases[first : first + rows]
        tokens, labels = np.zeros((2, rows, width), np.int32)
        for row, case in enumerate(batch):
            size = len(case.tokens) - 1
            tokens[row, :size], labels[row, :size] = case.tokens[:-1], case.tokens[1:]
        likeliest = scorer(tokens, labels).likeliest
        for row, case in enumerate(batch):
            yield bool(likeliest[row, case.answer - 1 : len(case.tokens) - 1].all())
            progress(len(case.tokens))
