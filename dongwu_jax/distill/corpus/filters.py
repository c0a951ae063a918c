"""Filters of single samples. Each measures one thing and has one limit."""

import re
import unicodedata
import zlib
from dataclasses import dataclass

from dongwu_jax.distill.corpus.records import Sample
from dongwu_jax.distill.corpus.text import passage_over, share_passage
from dongwu_jax.distill.synthesis.templates import CONTINUE

_PASSAGE = 20  # characters that count as repeated
_FEW_LETTERS = 10  # fewer say nothing about the language
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LETTER = re.compile(r"[^\W\d_]")
_WHITE_SPACE = re.compile(r"\s+")
_REPLACEMENT = "\ufffd"  # what decoders put for bytes that are no character

PHRASES = (
    "作为一个ai",
    "作为一名ai",
    "作为ai语言模型",
    "作为ai助手",
    "作为一个人工智能",
    "作为人工智能助手",
    "作为一个语言模型",
    "作为一个大语言模型",
    "我是一个ai",
    "我是一个人工智能",
    "抱歉,我无法",
    "抱歉,我不能",
    "对不起,我无法",
    "对不起,我不能",
    "以下是改写后",
    "改写后的文字如下",
    "希望对你有所帮助",
    "希望对您有所帮助",
    "希望以上信息",
    "如果您还有其他问题",
    "as an ai language model",
    "as an ai assistant",
    "as a large language model",
    "i am an ai",
    "i'm an ai",
    "i'm sorry, but i",
    "i am sorry, but i",
    "i cannot assist",
    "i can't assist",
    "i cannot fulfill",
    "i can't help with",
    "here is the rewritten",
    "here's the rewritten",
    "here is a rewritten",
    "here is a summary",
    "sure, here is",
    "sure, here's",
    "i hope this helps",
    "let me know if you have any",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "[inst]",
    "[/inst]",
)


@dataclass(frozen=True)
class Limits:
    """What samples must keep to; a share is of characters unless said otherwise.

    Attributes:
        min_new_tokens: least length of a completion, in tokens of the generator.
        max_replacement_characters: U+FFFD in a completion.
        max_language_difference: between the shares of Chinese among the letters of prefix and
            completion.
        max_repeated_passages: share inside passages of 20 characters that came before.
        max_compression: bytes of a completion for each byte that zlib makes of it.
        max_repeated_lines: share of the lines that came before.
        max_copied: share of a completion in its longest passage from the source.
        phrases: a completion must have none of them; case and width of letters do not matter.
    """

    min_new_tokens: int = 64
    max_replacement_characters: int = 0
    max_language_difference: float = 0.3
    max_repeated_passages: float = 0.4
    max_compression: float = 5.0
    max_repeated_lines: float = 0.3
    max_copied: float = 0.8
    phrases: tuple[str, ...] = PHRASES


@dataclass(frozen=True)
class Fault:
    """Why a sample is dropped.

    Attributes:
        reason: name of the filter, to count by.
        detail: what was found, for a person.
    """

    reason: str
    detail: str


FILTERS = (
    "unfinished",
    "short",
    "mojibake",
    "boilerplate",
    "language",
    "repeated_passages",
    "compressible",
    "repeated_lines",
    "copied",
)


class SampleFilter:
    """The filters in their order; the first that a sample fails counts."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        folded = sorted({_folded(phrase) for phrase in limits.phrases}, key=len, reverse=True)
        self._phrases = re.compile("|".join(map(re.escape, folded))) if folded else None

    def fault(self, sample: Sample, continuation: str | None) -> Fault | None:
        """Why a sample is dropped; None: it is not.

        Args:
            continuation: how the document goes on after the prefix; None: unknown.
        """
        if sample.finish_reason not in ("stop", "length"):
            return Fault("unfinished", f"finish_reason={sample.finish_reason}")
        limits, text = self._limits, sample.completion
        if sample.tokens < max(1, limits.min_new_tokens) or not text.strip():
            return Fault("short", f"{sample.tokens} new tokens")
        if (broken := text.count(_REPLACEMENT)) > limits.max_replacement_characters:
            return Fault("mojibake", f"{broken} x U+FFFD")
        if phrase := self._phrases and self._phrases.search(_folded(text)):
            return Fault("boilerplate", phrase[0])
        return self._language(sample) or self._repetition(text) or self._copy(sample, continuation)

    def _language(self, sample: Sample) -> Fault | None:
        before, after = han_share(sample.prefix), han_share(sample.completion)
        if before is None or after is None:
            return None
        if not _exceeds(abs(before - after), self._limits.max_language_difference):
            return None
        return Fault("language", f"Chinese {before:.0%} of the prefix, {after:.0%} of the rest")

    def _repetition(self, text: str) -> Fault | None:
        limits = self._limits
        if _exceeds(share := repeated_passages(text), limits.max_repeated_passages):
            return Fault("repeated_passages", f"{share:.0%} of its characters came before")
        if _exceeds(ratio := compression(text), limits.max_compression):
            return Fault("compressible", f"zlib makes it {ratio:.1f} times smaller")
        if _exceeds(share := repeated_lines(text), limits.max_repeated_lines):
            return Fault("repeated_lines", f"{share:.0%} of its lines came before")
        return None

    def _copy(self, sample: Sample, continuation: str | None) -> Fault | None:
        """A continuation may copy how the document goes on, a rewriting its passage."""
        source = continuation if sample.template == CONTINUE else sample.prefix
        if source is None:
            return None
        text = sample.completion
        source = source[: 2 * len(text)]  # the rest of a long document would take long to search
        limit = self._limits.max_copied
        if not share_passage(text, source, passage_over(limit, len(text))):
            return None
        return Fault("copied", f"more than {limit:.0%} is one passage of the source")


def han_share(text: str) -> float | None:
    """Share of Chinese characters among the letters; None if there are too few letters."""
    letters = len(_LETTER.findall(text))
    return len(_HAN.findall(text)) / letters if letters >= _FEW_LETTERS else None


def repeated_passages(text: str) -> float:
    """Share of characters inside passages of 20 characters that came before.

    White space of any length counts as one character: indentation is no repetition.
    """
    text = _WHITE_SPACE.sub(" ", text)
    seen: set[str] = set()
    covered = end = 0
    for start in range(len(text) - _PASSAGE + 1):
        passage = text[start : start + _PASSAGE]
        if passage in seen:
            covered += start + _PASSAGE - max(end, start)
            end = start + _PASSAGE
        else:
            seen.add(passage)
    return covered / max(1, len(text))


def compression(text: str) -> float:
    """Bytes of UTF-8 for each byte that zlib makes of them."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))


def repeated_lines(text: str) -> float:
    """Share of the lines, but for blank ones, that came before."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def _exceeds(value: float, limit: float) -> bool:
    return value > limit + 1e-9  # 1 - 0.7 is a little more than 0.3


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("’", "'").casefold()
