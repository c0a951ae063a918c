"""Perplexity by length and by position, from the reports that `tools/evaluate.py` wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, Field, PositiveInt, ValidationError

from dongwu_jax.errors import UserError

_LARGEST_BYTES = 50 * 2**20


@dataclass(frozen=True)
class PerplexityReport:
    """One file of `tools/evaluate.py perplexity --json`."""

    name: str
    about: str
    results: list[dict[str, Any]]


def find_perplexities(folder: Path, given: Sequence[Path]) -> list[PerplexityReport]:
    """Those in a run's folder, and those that were named.

    Raises:
        UserError: a file that was named is none.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        report = _read(path)
        if report is not None and path.resolve() not in {file.resolve() for file in given}:
            found.append(report)
    for path in given:
        report = _read(path)
        if report is None:
            raise UserError(
                f"--perplexity {path}: is no report of `tools/evaluate.py perplexity --json`"
            )
        found.append(report)
    return found


def _read(path: Path) -> PerplexityReport | None:
    """A report, or None where a file is something else."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return None
        record = orjson.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError:
        return None
    results = record.get("results") if isinstance(record, dict) else None
    if not isinstance(results, list) or not results or not all(map(_is_perplexity, results)):
        return None
    about = [f"{name} {record[name]}" for name in ("model", "data", "dtype") if name in record]
    protocol = f"protocol {results[0].get('protocol', 'unknown')}"
    return PerplexityReport(path.stem, ", ".join([*about, protocol]), results)


class _Part(BaseModel):
    last: PositiveInt
    perplexity: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Result(BaseModel):
    """What of a result is drawn."""

    length: PositiveInt
    perplexity: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    by_position: list[_Part] = []


def _is_perplexity(result: Any) -> bool:
    try:
        _Result.model_validate(result)
    except ValidationError:
        return False
    return True
