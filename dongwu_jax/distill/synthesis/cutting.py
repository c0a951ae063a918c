"""Cutting texts where a token of the generator ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_pb2

from dongwu_jax.data.tokenizers import load_tokenizer

# Tokens near the end of a piece of text might continue in the rest of it.
_UNCERTAIN_TOKENS = 16
_CHARACTERS_PER_TOKEN = 5  # more than most texts have

# Of every token the characters where it begins and ends.
_Spans = Callable[[str], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Cuts:
    """Where the first tokens of a text end.

    Attributes:
        ends: number of characters of the first 1, 2, ... tokens.
        clean: whether a text that is cut there has whole characters only: one character can be
            several tokens.
    """

    ends: list[int]
    clean: list[bool]

    def near(self, tokens: int, least: int) -> int:
        """The number of tokens to cut behind: `tokens`, or fewer, or if need be more; 0: none."""
        candidates = [*range(tokens, least - 1, -1), *range(tokens + 1, len(self.ends) + 1)]
        return next((n for n in candidates if self.clean[n - 1]), 0)

    def tokens_within(self, characters: int) -> int:
        """How many tokens lie in the first `characters` of the text."""
        return sum(end <= characters for end in self.ends)


class TextCutter:
    """Cuts texts by the tokenizer at a path: a folder, `tokenizer.json` or `.model` file.

    Raises:
        UserError: there is no tokenizer, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.file = load_tokenizer(path).path  # checks it, with errors that help
        self._spans = _spans_of(self.file)

    def cuts(self, text: str, tokens: int) -> Cuts:
        """Cuts of the first `tokens` tokens of a text, fewer if it is shorter.

        However long the text, only as much of it is read as is needed.
        """
        needed = tokens + _UNCERTAIN_TOKENS
        characters = needed * _CHARACTERS_PER_TOKEN
        spans = self._spans(text[:characters])
        while len(spans) < needed and characters < len(text):
            characters *= 2
            spans = self._spans(text[:characters])
        starts_of_next = [start for start, _ in spans[1:]] + [len(text)]
        clean = [
            start < end <= following
            for (start, end), following in zip(spans, starts_of_next, strict=False)
        ]
        certain = len(spans) - _UNCERTAIN_TOKENS if characters < len(text) else len(spans)
        kept = min(tokens, certain)
        return Cuts([end for _, end in spans[:kept]], clean[:kept])


def _spans_of(file: Path) -> _Spans:
    if file.suffix == ".model":
        processor = sentencepiece.SentencePieceProcessor(model_file=str(file))

        def pieces(text: str) -> Sequence[tuple[int, int]]:
            # The one form with positions, in bytes, that all versions have.
            encoded = processor.encode(text, out_type="serialized_proto")
            found = sentencepiece_pb2.SentencePieceText.FromString(encoded).pieces  # type: ignore[attr-defined]
            lengths = (len(character.encode()) for character in text)
            character_at = {end: n for n, end in enumerate(accumulate(lengths, initial=0))}
            return [(character_at[piece.begin], character_at[piece.end]) for piece in found]

        return pieces
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def offsets(text: str) -> Sequence[tuple[int, int]]:
        return tokenizer.encode(text, add_special_tokens=False).offsets

    return offsets
