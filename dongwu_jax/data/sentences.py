"""Rule-based sentence boundaries for English and Chinese."""

import re

_ABBREVIATIONS = frozenset(
    {"Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "St.", "No.", "vs.", "e.g.", "i.e.", "cf."}
    | {"Fig.", "Eq.", "Inc.", "Ltd.", "Co.", "Corp.", "Jr.", "Sr."}
)
_CLOSING = "\"'”’」』）)\\]】》"
# A full stop of Chinese ends a sentence at once, one of English only before white space.
_BOUNDARY = re.compile(rf"(?:[。！？…]+[{_CLOSING}]*|[.!?]+[{_CLOSING}]*(?=\s))(\s*)")


def split_sentences(text: str, keep_newlines: bool = False) -> list[str]:
    """Cut a text into sentences; white space around them is dropped.

    An English mark is no boundary after an abbreviation such as "Dr." or before a lower-case
    letter. With `keep_newlines` the white space behind a sentence stays with it if it holds a
    line break, so that paragraphs can be recognised.
    """
    sentences = []
    start = 0
    for match in _BOUNDARY.finditer(text):
        words = text[start : match.start(1)].split()
        continues = text[match.end() : match.end() + 1].islower()
        if continues or (words and words[-1] in _ABBREVIATIONS):
            continue
        keep = keep_newlines and "\n" in match.group(1)
        sentences.append(text[start : match.end() if keep else match.start(1)])
        start = match.end()
    sentences.append(text[start:])
    if keep_newlines:
        return [s.lstrip() for s in sentences if s.strip()]
    return [s.strip() for s in sentences if s.strip()]
