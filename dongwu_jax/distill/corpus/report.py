"""What was kept and dropped, with examples."""

import bisect
import hashlib
from dataclasses import dataclass, field
from typing import Any

from dongwu_jax.distill.corpus.filters import FILTERS, Fault
from dongwu_jax.distill.corpus.judging import Judged

REASONS = ("bad_line", *FILTERS, "contaminated", "in_original", "duplicate", "near_duplicate")
_EXAMPLES = 20  # of each reason


@dataclass
class Tally:
    """Numbers of samples, of the characters of their texts and the tokens of their completions."""

    records: int = 0
    characters: int = 0
    tokens: int = 0

    def add(self, judged: Judged) -> None:
        """Count a sample."""
        self.records += 1
        self.characters += judged.characters
        self.tokens += judged.tokens

    def record(self, total: "Tally") -> dict[str, Any]:
        """For the report, with the share of all samples."""
        share = round(self.records / max(1, total.records), 6)
        counts = {"records": self.records, "share": share}
        return counts | {"characters": self.characters, "new_tokens": self.tokens}


class _Examples:
    """Samples drawn at random, the same whenever the same were offered."""

    def __init__(self) -> None:
        self._drawn: list[tuple[bytes, str, dict[str, Any]]] = []

    def offer(self, judged: Judged, fault: Fault) -> None:
        lot = hashlib.blake2b(judged.place.encode(), digest_size=8).digest()
        if len(self._drawn) == _EXAMPLES and lot > self._drawn[-1][0]:
            return
        example = {
            "id": judged.id,
            "place": judged.place,
            "source": judged.source,
            "detail": fault.detail,
            "completion": judged.excerpt,
        }
        bisect.insort(self._drawn, (lot, judged.place, example), key=lambda entry: entry[:2])
        del self._drawn[_EXAMPLES:]

    def listed(self) -> list[dict[str, Any]]:
        return [example for _, _, example in self._drawn]


@dataclass
class Outcome:
    """What came of all samples.

    Attributes:
        trimmed: kept samples whose completion ended inside a sentence.
        questions: names of those that were found in samples.
        control: samples of the control.
        control_contaminated: that are not written because they hold a question.
    """

    read: Tally = field(default_factory=Tally)
    kept: Tally = field(default_factory=Tally)
    trimmed: int = 0
    dropped: dict[str, Tally] = field(
        default_factory=lambda: {reason: Tally() for reason in REASONS}
    )
    questions: set[str] = field(default_factory=set)
    control: Tally = field(default_factory=Tally)
    control_contaminated: int = 0
    _examples: dict[str, _Examples] = field(
        default_factory=lambda: {reason: _Examples() for reason in REASONS}
    )

    def keep(self, judged: Judged) -> None:
        """Count a sample that is kept, and its control."""
        self.read.add(judged)
        self.kept.add(judged)
        self.trimmed += judged.trimmed
        if judged.control:
            self.control.records += 1
            self.control.characters += judged.control_characters
        self.control_contaminated += judged.control_question is not None

    def drop(self, judged: Judged, fault: Fault) -> None:
        """Count a sample that is dropped."""
        self.read.add(judged)
        self.dropped[fault.reason].add(judged)
        self._examples[fault.reason].offer(judged, fault)
        if judged.question:
            self.questions.add(judged.question)

    def record(self) -> dict[str, Any]:
        """All of it, for a file."""
        dropped = {
            reason: tally.record(self.read) | {"examples": self._examples[reason].listed()}
            for reason, tally in self.dropped.items()
        }
        return {
            "read": self.read.record(self.read),
            "kept": self.kept.record(self.read) | {"trimmed": self.trimmed},
            "dropped": dropped,
        }

    def table(self) -> str:
        """For a person: the reasons for which samples were dropped, in the order of the filters."""
        width = max(map(len, REASONS))
        lines = [f"{'':{width}}  {'samples':>10}  {'share':>6}  {'characters':>14}"]
        rows = {"read": self.read} | {n: t for n, t in self.dropped.items() if t.records}
        for name, tally in (rows | {"kept": self.kept}).items():
            share = tally.records / max(1, self.read.records)
            lines.append(
                f"{name:{width}}  {tally.records:>10,}  {share:>6.1%}  {tally.characters:>14,}"
            )
        return "\n".join(lines)
