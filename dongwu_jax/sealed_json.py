"""JSON that our jobs leave for themselves to go on with, sealed: a changed digit is noticed.

The numbers in such a file say where to cut and what to skip; a wrong one would go unnoticed.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object

_SEAL = "checksum"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object to write: the content, and a checksum of it."""
    return {**content, _SEAL: _checksum(content)}


def read_sealed_json(path: Path) -> dict[str, Any]:
    """What was sealed into a file.

    Raises:
        UserError: the file cannot be read, or is not as it was written.
    """
    content = read_json_object(path)
    seal = content.pop(_SEAL, None)
    if seal != _checksum(content):
        raise UserError(f"{path}: is damaged: its checksum is not that of its content")
    return content


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
