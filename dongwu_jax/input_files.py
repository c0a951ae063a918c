"""Small files that are read whole: settings, indexes, manifests, tokenizers."""

import json
import os
from pathlib import Path
from typing import Any

from dongwu_jax.errors import UserError

LARGEST_BYTES = 1 << 28
"""Bytes of a file that is read whole; the largest of real models have a tenth of it."""


def read_small_file(path: Path, largest: int = LARGEST_BYTES) -> bytes:
    """The bytes of a file.

    Raises:
        UserError: it cannot be read, or has more than `largest` bytes.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(largest + 1) if size <= largest else b""
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    size = max(size, len(content))
    if size > largest:
        raise UserError(
            f"{path}: has {size} bytes, and at most {largest} are accepted of such a file; "
            "is it the right one?"
        )
    return content


def read_text(path: Path, largest: int = LARGEST_BYTES) -> str:
    """The text of a file, with its line ends as \\n.

    Raises:
        UserError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        text = read_small_file(path, largest).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 at byte {error.start}; convert it") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, is too large, or is not JSON.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, place: str) -> Any:
    """What a JSON text says.

    Args:
        place: where it stands, for the error: a file, or file and line.

    Raises:
        UserError: it is not JSON, or more than can be read of it.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: is not JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{place}: is nested too deeply to be data; was it damaged?") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise UserError(f"{place}: holds a number that is too long: {error}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UserError: as `read_json`, or it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    return content
