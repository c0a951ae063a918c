"""Texts as filters compare them: normalised, trimmed to whole sentences, with shared passages."""

import re
import unicodedata

_NOT_COMPARED = re.compile(r"[\W_]+")
# A line that ends with a small letter or a comma was wrapped, unless a blank line follows.
_SENTENCE_END = re.compile(
    r"""[。！？…][”’」』）"')]*|[.!?][”’"')\]]*(?=\s|\Z)|(?<![a-z,;，、；])\n|\n[ \t]*\n"""
)
_COUNTED = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+")


def normalized(text: str) -> str:
    """Letters and digits alone, without case and in one form of each (Unicode's NFKC)."""
    return _NOT_COMPARED.sub("", unicodedata.normalize("NFKC", text)).casefold()


def estimated_tokens(text: str) -> int:
    """Chinese characters and words: about the tokens of a text whose tokenizer is unknown."""
    return len(_COUNTED.findall(text))


def sentence_ends(text: str) -> list[int]:
    """Number of characters up to the end of each sentence or line."""
    return [match.end() for match in _SENTENCE_END.finditer(text)]


def trimmed(text: str) -> str:
    """A text up to its last whole sentence or line; nothing if there is none."""
    ends = sentence_ends(text)
    return text[: ends[-1]] if ends else ""


def share_passage(first: str, second: str, length: int) -> bool:
    """Whether two texts have a passage of so many characters (at least 1) in common."""
    # Every passage of that length covers one of these pieces whole: most pairs end here.
    piece = (length + 1) // 2
    if not any(
        first[start : start + piece] in second for start in range(0, len(first) - piece + 1, piece)
    ):
        return False
    return any(first[start : start + length] in second for start in range(len(first) - length + 1))


def passage_over(share: float, characters: int) -> int:
    """Characters of the shortest passage that is more than a share of so many characters."""
    return int(share * characters + 1e-9) + 1
