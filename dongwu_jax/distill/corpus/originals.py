"""The documents behind the samples, and how they really go on."""

import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path

from dongwu_jax.data.jsonl import LineBlock, parse_texts, read_blocks
from dongwu_jax.distill.corpus.records import Sample
from dongwu_jax.distill.corpus.text import sentence_ends
from dongwu_jax.distill.synthesis.parts import source_names
from dongwu_jax.errors import UserError

_TOLERANCE = 0.1  # of the length: a sentence end so near is better than the exact length


class Originals:
    """Documents by the `source` of their samples: file name and line.

    Samples come in the order of their documents, as a rule: then every file is read once.

    Args:
        files: that were given to tools/synthesize.py, all of them.
        text_key: key of the text.
    """

    def __init__(self, files: Sequence[Path], text_key: str) -> None:
        self._text_key = text_key
        self._files = {name: _LineReader(path) for path, name in source_names(files).items()}

    def continuation(self, sample: Sample) -> str:
        """What follows the prefix in the sample's document.

        Raises:
            UserError: there is no such document, or it does not begin with the prefix.
        """
        name, _, number = (sample.source or "").rpartition(":")
        if sample.source is None or not number.isdecimal():
            raise UserError(
                f"sample {sample.id}: source={sample.source}: must be file name and line of a "
                "document in --original, as tools/synthesize.py writes it"
            )
        if name not in self._files:
            raise UserError(
                f"sample {sample.id}: its document is in {name}, and --original has only "
                f"{', '.join(list(self._files)[:5])}; give all files that were --input of "
                "tools/synthesize.py"
            )
        file = self._files[name]
        line = file.line(int(number))
        if line is None:
            raise UserError(f"{file.path}: has no line {number}, where sample {sample.id} is from")
        text = "\n".join(parse_texts(line, [self._text_key], file.path, int(number))[0])
        if not text.startswith(sample.prefix):
            raise UserError(
                f"{file.path}:{number}: does not begin with the prefix of sample {sample.id}; "
                "give the very files that were --input of tools/synthesize.py"
            )
        return text[len(sample.prefix) :]


class _LineReader:
    """Lines of a file by their number; going on is fast, going back starts at a known block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = [(1, 0)]  # line and offset of each block that was reached
        self._blocks: Iterator[LineBlock] = iter(())
        self._first, self._lines = 1, []  # of the block at hand
        self._opened = False

    _lines: list[bytes]

    def line(self, number: int) -> bytes | None:
        """A line by its number from 1; None: there are fewer."""
        if not self._opened or number < self._first:
            self._open(number)
        while number >= self._first + len(self._lines):
            block = next(self._blocks, None)
            if block is None:
                return None
            self._first, self._lines = block.first_line, block.data.split(b"\n")
            del self._lines[block.lines :]  # what follows the last line end
            following = (block.first_line + block.lines, block.end)
            if following > self._starts[-1]:
                self._starts.append(following)
        return self._lines[number - self._first]

    def _open(self, number: int) -> None:
        index = bisect.bisect_right(self._starts, (number, float("inf"))) - 1
        first, offset = self._starts[index]
        self._blocks = read_blocks(self.path, offset, first)
        self._first, self._lines = first, []
        self._opened = True


def cut_like(continuation: str, characters: int) -> str:
    """About so many characters of a text, up to the end of a sentence if one is near."""
    if len(continuation) <= characters:
        return continuation
    slack = int(characters * _TOLERANCE)
    near = [
        end
        for end in sentence_ends(continuation[: characters + slack])
        if end >= characters - slack
    ]
    return continuation[: min(near, key=lambda end: abs(end - characters), default=characters)]
