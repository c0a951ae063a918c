"""Streaming reader of JSON lines: plain, gzip or Zstandard, by whole lines in large blocks."""

import contextlib
import glob
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson
import zstandard

from dongwu_jax.errors import UserError
from dongwu_jax.input_files import parse_json

_BLOCK_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 28  # one document; beyond it the file is hardly JSON lines
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class LineBlock:
    """Consecutive whole lines of one file.

    Attributes:
        path: the file.
        first_line: number of the first line, counted from 1.
        lines: number of lines.
        end: offset behind the block in the (decompressed) file, in bytes.
        file_bytes_read: how much of the (compressed) file was read, for progress.
        data: the lines with their line ends.
    """

    path: Path
    first_line: int
    lines: int
    end: int
    file_bytes_read: int
    data: bytes


def expand_inputs(patterns: Iterable[str]) -> list[Path]:
    """The files that paths and glob patterns name: patterns in order, their matches sorted.

    Raises:
        UserError: a pattern matches nothing, or a folder, or a file is named twice.
    """
    files: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        matches = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(pattern))]
        if not matches:
            raise UserError(f"{pattern}: no such file, and no file matches it")
        for match in matches:
            if not match.exists():
                raise UserError(f"{match}: is a link to a file that is not there")
            if match.is_dir():
                raise UserError(f"{match}: is a folder; name its files, e.g. '{match}/*.jsonl'")
            if match in files:
                raise UserError(f"{match}: is named twice as input")
            files.append(match)
    return files


def read_blocks(path: Path, offset: int = 0, first_line: int = 1) -> Iterator[LineBlock]:
    """Read a file from `offset` (in decompressed bytes, the start of line `first_line`) on.

    Raises:
        UserError: it cannot be read, its compression is damaged, or a line is far too long.
    """
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
            file = _decompressed(raw, path)
            _skip(file, offset)
            while data := file.read(_BLOCK_BYTES):
                if not data.endswith(b"\n"):
                    data += file.readline(_MAX_LINE_BYTES)
                    if len(data) >= _MAX_LINE_BYTES and not data.endswith(b"\n"):
                        number = first_line + data.count(b"\n")
                        raise UserError(
                            f"{path}:{number}: is longer than {_MAX_LINE_BYTES >> 20} MiB; the "
                            "input must hold one JSON object per line"
                        )
                start, offset = offset, offset + len(data)
                if start == 0:
                    data = data.removeprefix(_BYTE_ORDER_MARK)
                lines = data.count(b"\n") + (not data.endswith(b"\n"))
                yield LineBlock(path, first_line, lines, offset, raw.tell(), data)
                first_line += lines
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise UserError(f"{path}: cannot be read to its end: {error}") from None


def block_lines(block: LineBlock) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line of a block that is not blank."""
    for number, line in enumerate(block.data.split(b"\n"), block.first_line):
        if line and not line.isspace():
            yield number, line


def read_lines(paths: Iterable[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """File, line number (from 1) and bytes of every line that is not blank."""
    for path in paths:
        for block in read_blocks(path):
            for number, line in block_lines(block):
                yield path, number, line


def parse_texts(line: bytes, keys: Sequence[str], path: Path, number: int) -> list[list[str]]:
    """For each key the texts of one line: a string gives one text, a list of strings several.

    Raises:
        UserError: naming file and line: not UTF-8, not a JSON object, a key is missing, or its
            value is neither a string nor a list of strings.
    """
    record = parse_object(line, f"{path}:{number}")
    return [_texts_of(record, key, path, number) for key in keys]


def parse_object(line: bytes, place: str) -> dict[str, Any]:
    """The JSON object of one line.

    Args:
        place: file and line, for the error.

    Raises:
        UserError: it is not UTF-8, or not a JSON object.
    """
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:  # also for NaN and long integers, which json accepts
        record = _parse_leniently(line, place)
    if not isinstance(record, dict):
        raise UserError(f"{place}: must be a JSON object, not a {type(record).__name__}")
    return record


def _texts_of(record: dict[str, Any], key: str, path: Path, number: int) -> list[str]:
    value = record.get(key)
    if isinstance(value, str):
        return [value]
    if key not in record:
        present = ", ".join(list(record)[:10]) or "none"
        raise UserError(
            f"{path}:{number}: has no key {key!r} (its keys: {present}); rename one, or name "
            "the right ones with --json-keys (preprocess_data and train_tokenizer)"
        )
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    raise UserError(
        f"{path}:{number}: the value of {key!r} must be a string or a list of strings, not "
        f"{'a list with other things' if isinstance(value, list) else json.dumps(value)[:40]}"
    )


def _parse_leniently(line: bytes, place: str) -> Any:
    """Parse what the strict parser refused, or explain what is wrong with it."""
    try:
        record = parse_json(line.decode(), place)
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: is not UTF-8 at byte {error.start}; convert the file") from None
    except UnicodeEncodeError:
        raise UserError(
            f"{place}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
        ) from None
    return record


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    new_frame = _NEW_FRAME.get(path.suffix)
    return raw if new_frame is None else io.BufferedReader(_Frames(raw, new_frame), _BLOCK_BYTES)


def _skip(file: IO[bytes], offset: int) -> None:
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0:
        skipped = len(file.read(min(offset, _BLOCK_BYTES)))
        if not skipped:
            raise EOFError("it is shorter than before")
        offset -= skipped


_NEW_FRAME: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),  # with gzip's header and checksum
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


class _Frames(io.RawIOBase):
    """Decompressed bytes of one frame after another.

    Unlike the libraries' own readers it refuses a cut file, and is quick in passing over the zeros
    with which some tools fill a file up.
    """

    def __init__(self, compressed: IO[bytes], new_frame: Callable[[], Any]) -> None:
        self._compressed, self._new_frame = compressed, new_frame
        self._frame = new_frame()
        self._between_frames, self._complete = True, 0
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = self._new_frame()
                self._between_frames, self._complete = True, self._complete + 1
            data = data or self._compressed.read(1 << 16)
            if not data:
                if not self._between_frames:
                    raise EOFError("the compressed file is cut short")
                return 0
            if self._between_frames and self._complete:
                data = data.lstrip(b"\0")
                if not data:
                    continue
            self._between_frames = False
            self._pending = memoryview(self._frame.decompress(data))
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count
