"""Samples and documents for tests of the corpus."""

import json
import random
from pathlib import Path
from typing import Any


def chinese(seed: int, characters: int) -> str:
    """Sentences of ten characters, the same for the same seed."""
    draw = random.Random(seed)
    text = [chr(draw.randrange(0x4E00, 0x5E00)) for _ in range(characters)]
    text[9::10] = "。" * len(text[9::10])
    return "".join(text)


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
