"""Documents to prompts. The same document and recipe always give the same requests."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dongwu_jax.data.jsonl import parse_texts
from dongwu_jax.distill.synthesis.cutting import Cuts, TextCutter
from dongwu_jax.distill.synthesis.recipe import Recipe
from dongwu_jax.distill.synthesis.templates import CONTINUE, chat_message
from dongwu_jax.errors import UserError

_SENTENCE_END = re.compile(r"[。！？；][”’」』）]*|[.!?](?=\s)|\n")


@dataclass(frozen=True)
class Request:
    """One sample to be generated.

    Attributes:
        id: of the sample, in the input and beyond: a hash of all that decides it.
        source: file name and line of the document.
        round: which sample of the document, from 0.
        prefix: start of the document.
        prefix_tokens: its length in tokens of the generator.
        message: what a chat model is asked; None: the prefix is to be continued.
        seed: of its random draws.
    """

    id: str
    source: str
    round: int
    prefix: str
    prefix_tokens: int
    message: str | None
    seed: int


@dataclass(frozen=True)
class Rejection:
    """A document, or one sample of it, that is set aside.

    Attributes:
        source: file name and line of the document.
        kind: short word to count by.
        reason: what is wrong, for a person.
        request: the sample; None: it is the whole document.
    """

    source: str
    kind: str
    reason: str
    request: Request | None = None


class PromptMaker:
    """Makes the requests of one document after another.

    Args:
        names: of each input file, for the records.
    """

    def __init__(self, recipe: Recipe, cutter: TextCutter, names: Mapping[Path, str]) -> None:
        self._recipe = recipe
        self._cutter = cutter
        self._names = names

    def requests(self, path: Path, number: int, line: bytes) -> Iterator[Request | Rejection]:
        """The requests of a line of the input, or why there are none."""
        recipe = self._recipe
        source = f"{self._names[path]}:{number}"
        try:
            text = "\n".join(parse_texts(line, [recipe.text_key], path, number)[0])
        except UserError as error:
            yield Rejection(source, "input", str(error))
            return
        low, high = recipe.prefix_tokens
        least = max(low, recipe.min_document_tokens)
        cuts = self._cutter.cuts(text, max(high, least))
        if len(cuts.ends) < least:
            reason = f"has {len(cuts.ends)} tokens, fewer than {least}"
            yield Rejection(source, "short", reason)
            return
        for round_number in range(recipe.rounds):
            yield self._request(source, text, cuts, round_number)

    def _request(
        self, source: str, text: str, cuts: Cuts, round_number: int
    ) -> Request | Rejection:
        recipe = self._recipe
        low, high = recipe.prefix_tokens
        drawn = _hash(recipe.seed, source, round_number, "length")
        high = min(high, len(cuts.ends))
        wanted = low + int.from_bytes(drawn[:8], "little") % (high - low + 1)
        tokens = cuts.near(wanted, low)
        prefix = text[: cuts.ends[tokens - 1]] if tokens else ""
        if recipe.template != CONTINUE and len(prefix) < len(text):
            prefix = _whole_sentences(prefix)
            tokens = cuts.tokens_within(len(prefix))
        if not prefix.strip():
            return Rejection(source, "short", "its prefix is only white space")
        decides = (recipe.seed, source, round_number, recipe.template, prefix)
        digest = _hash(*decides)
        chat = recipe.template != CONTINUE
        return Request(
            id=digest.hex(),
            source=source,
            round=round_number,
            prefix=prefix,
            prefix_tokens=tokens,
            message=chat_message(recipe.template, prefix, recipe.language) if chat else None,
            seed=int.from_bytes(digest[:4], "little") >> 1,  # servers take 31 bits everywhere
        )


def _whole_sentences(passage: str) -> str:
    """A passage without its last, broken sentence, if more than half of it remains."""
    ends = [match.end() for match in _SENTENCE_END.finditer(passage)]
    return passage[: ends[-1]] if ends and ends[-1] * 2 > len(passage) else passage


def _hash(*content: object) -> bytes:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).digest()
