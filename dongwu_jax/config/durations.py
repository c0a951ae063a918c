"""A length of training said in the unit the user thinks in: steps, samples or tokens."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_PATTERN = re.compile(r"^\s*(\d[\d_,]*(?:\.\d+)?)\s*([kKmMbBtT]?)\s*(steps?|samples?|tokens?)?\s*$")
_MULTIPLIERS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Duration:
    """A count of steps, samples or tokens, such as `300`, `"4.8M samples"` or `"12B tokens"`."""

    count: int
    unit: str  # "steps", "samples" or "tokens"

    @classmethod
    def parse(cls, value: object) -> "Duration":
        """Read a bare count (steps) or a text such as `"12B tokens"`.

        Raises:
            ValueError: the value is negative, not a number, or names another unit.
        """
        if isinstance(value, Duration):
            return value
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(_explain(value))
        match = _PATTERN.match(str(value))
        if match is None:
            raise ValueError(_explain(value))
        number, multiplier, unit = match.groups()
        number = number.replace(",", "").replace("_", "")
        count = Decimal(number) * _MULTIPLIERS[multiplier.lower()]  # 8.2M exactly
        if count != int(count):
            raise ValueError(f"{value!r} is not a whole number of {unit or 'steps'}")
        return cls(int(count), (unit or "steps").rstrip("s") + "s")

    def in_samples(self, global_batch_size: int, sequence_length: int) -> float:
        """This length in samples (sequences), possibly fractional for a count of tokens."""
        if self.unit == "steps":
            return float(self.count * global_batch_size)
        return self.count / (sequence_length if self.unit == "tokens" else 1)

    def in_steps(self, global_batch_size: int, sequence_length: int) -> int:
        """The number of whole steps that reach this length, rounding up."""
        return -int(-self.in_samples(global_batch_size, sequence_length) // global_batch_size)

    def __str__(self) -> str:
        return f"{self.count} {self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema()
        )


def _explain(value: object) -> str:
    return (
        f"{value!r} is not a duration: write a number of steps (300), or a text such as "
        "'4.8M samples' or '12B tokens'"
    )
