"""Statutes as tools/gather_corpus.py writes them: law and chapter, then the articles."""

import re
from dataclasses import dataclass

_ARTICLE = re.compile(r"第[零〇一二三四五六七八九十百千]+条(?:之[一二三四五六七八九十]+)? ")


@dataclass(frozen=True)
class Article:
    """`number` is 第一条; `text` has the article's paragraphs, a line each."""

    number: str
    text: str


def law_of(text: str) -> str | None:
    """The law whose chapter a document is, or None where it is no chapter of a law."""
    heading, _, body = text.partition("\n")
    return heading.partition(" ")[0] if _ARTICLE.match(body) else None


def articles(text: str) -> list[Article]:
    """The articles of a chapter, in their order."""
    found: list[tuple[str, list[str]]] = []
    for line in text.split("\n")[1:]:
        if _ARTICLE.match(line):
            number, _, line = line.partition(" ")
            found.append((number, []))
        if found:
            found[-1][1].append(line)
    return [Article(number, "\n".join(lines)) for number, lines in found]
