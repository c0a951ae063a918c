"""Files of JSON lines."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """A record a line."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")
    return path


def write_texts(path: Path, texts: Iterable[str]) -> Path:
    """A document a line."""
    return write_lines(path, [{"text": text} for text in texts])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The record of every line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
