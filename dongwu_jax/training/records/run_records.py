"""Lines and fields of a run's records, as a run that may be killed at any moment leaves them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from dongwu_jax.errors import UserError

_LONGEST_LINE = 1 << 24  # bytes; a file that a crash filled with zeros is one line


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines; half a line, left by a kill, is passed over. Nothing if no file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        if not path.exists():
            return
        with path.open("rb") as file:
            for line in iter(lambda: file.readline(_LONGEST_LINE), b""):
                try:
                    value = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(value, dict):
                    yield value
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def number(value: Any, otherwise: float = float("nan")) -> float:
    """A field of a record as a finite number; whatever is none counts as absent."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return otherwise


def record(value: Any) -> dict[str, Any]:
    """A field of a record that is a record itself; whatever is none counts as an empty one."""
    return value if isinstance(value, dict) else {}


def records(value: Any) -> list[dict[str, Any]]:
    """A field that is a list of records; whatever is none counts as an empty list."""
    whole = isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
    return value if whole else []
