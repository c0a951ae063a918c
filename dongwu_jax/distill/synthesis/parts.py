"""Parts of the input, and the files of their samples: a file exists only when it is complete."""

import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from dongwu_jax.data.jsonl import block_lines, read_blocks
from dongwu_jax.errors import UserError
from dongwu_jax.output_files import replacing, write_json_file
from dongwu_jax.sealed_json import read_sealed_json, sealed

_PLAN = "parts.json"
_LONGEST_LINE = 1 << 26  # bytes of a sample


@dataclass(frozen=True)
class Part:
    """Consecutive documents, whose samples go into one file.

    Attributes:
        number: from 0.
        file: number of the input file in which it begins.
        offset: where it begins, in decompressed bytes.
        line: number of that line, from 1.
        documents: how many; they may go on in the next file.
    """

    number: int
    file: int
    offset: int
    line: int
    documents: int


def source_names(inputs: Sequence[Path]) -> dict[Path, str]:
    """A name of each input file: its path below the folder that all of them share."""
    shared = os.path.commonpath([path.absolute().parent for path in inputs])
    return {path: os.path.relpath(path.absolute(), shared) for path in inputs}


def plan_parts(inputs: Sequence[Path], documents_per_part: int, limit: int | None) -> list[Part]:
    """Divide the lines of the input that are not blank.

    Raises:
        UserError: a file cannot be read, or there is no line.
    """
    parts: list[Part] = []
    documents = 0
    start = (0, 0, 0)
    for file, offset, line in itertools.islice(_line_starts(inputs), limit):
        if documents == 0:
            start = (file, offset, line)
        documents += 1
        if documents == documents_per_part:
            parts.append(Part(len(parts), *start, documents))
            documents = 0
    if documents:
        parts.append(Part(len(parts), *start, documents))
    if not parts:
        raise UserError(f"{inputs[0]}: the input has no documents")
    return parts


def _line_starts(inputs: Sequence[Path]) -> Iterator[tuple[int, int, int]]:
    for number, path in enumerate(inputs):
        for block in read_blocks(path):
            offset = block.end - len(block.data)  # counted from the end: a mark may be missing
            for line, content in enumerate(block.data.split(b"\n"), block.first_line):
                if content and not content.isspace():
                    yield number, offset, line
                offset += len(content) + 1


def documents_of(part: Part, inputs: Sequence[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """File, line number and bytes of each document of a part."""
    return itertools.islice(_lines_from(part, inputs), part.documents)


def _lines_from(part: Part, inputs: Sequence[Path]) -> Iterator[tuple[Path, int, bytes]]:
    for number, path in enumerate(inputs[part.file :]):
        start = (part.offset, part.line) if number == 0 else (0, 1)
        for block in read_blocks(path, *start):
            for line, content in block_lines(block):
                yield path, line, content


def read_plan(path: Path) -> list[list[int]]:
    """The fields of each part, of a plan that `PartFolder.planned` wrote.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    plan = read_sealed_json(path)
    if not isinstance(plan.get("parts"), list):
        raise UserError(f"{path}: is no plan of a job's parts")
    return plan["parts"]


class PartFolder:
    """The files of a job's parts in its output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def planned(
        self, inputs: Sequence[Path], documents_per_part: int, limit: int | None
    ) -> list[Part]:
        """The parts, from an earlier run of the same job or from reading the input.

        Raises:
            UserError: the plan of the earlier run is damaged, or see `plan_parts`.
        """
        path = self.folder / _PLAN
        if path.exists():
            return [Part(*entry) for entry in read_plan(path)]
        parts = plan_parts(inputs, documents_per_part, limit)
        write_json_file(path, sealed({"parts": [list(astuple(part)) for part in parts]}))
        return parts

    def samples(self, number: int) -> Path:
        """The file of a part's samples."""
        return self.folder / f"part-{number:05}.jsonl"

    def rejected(self, number: int) -> Path:
        """The file of what was set aside of a part; it exists only where there is something."""
        return self.folder / f"rejected-{number:05}.jsonl"

    def begun(self, number: int) -> tuple[list[dict[str, Any]], BinaryIO]:
        """Samples of a part that an earlier process began, and the open file to add others to.

        Raises:
            UserError: the file cannot be written.
        """
        path = self._begun(number)
        try:
            file = path.open("a+b")
            file.seek(0)
            records, end = [], 0
            for line in iter(lambda: file.readline(_LONGEST_LINE), b""):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = orjson.loads(line)
                except orjson.JSONDecodeError:  # after a power cut
                    break
                if not isinstance(record, dict):
                    break
                records.append(record)
                end += len(line)
            file.truncate(end)  # half a line: the process was killed
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        return records, file

    def write(
        self, number: int, samples: Iterable[dict[str, Any]], rejected: Sequence[dict[str, Any]]
    ) -> None:
        """Write a part; its samples last, for their file says that all of it is there.

        Raises:
            UserError: the folder cannot be written, e.g. because the disk is full.
        """
        if rejected:
            _write(self.rejected(number), rejected)
        else:
            self.rejected(number).unlink(missing_ok=True)  # of a run that was killed
        _write(self.samples(number), samples)
        self._begun(number).unlink(missing_ok=True)

    def remove_leftovers(self, numbers: Collection[int]) -> None:
        """Remove what killed processes left of these parts and nobody needs."""
        for number in numbers:
            if self.samples(number).exists():
                self._begun(number).unlink(missing_ok=True)
        mine = {path.name for n in numbers for path in (self.samples(n), self.rejected(n))}
        for path in self.folder.glob(".*.jsonl.*"):
            if path.name[1:].rpartition(".")[0] in mine:
                path.unlink(missing_ok=True)

    def _begun(self, number: int) -> Path:
        return self.folder / f".part-{number:05}.begun"


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with replacing(path) as file:
        for record in records:
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
