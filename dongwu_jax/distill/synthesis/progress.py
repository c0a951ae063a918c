"""What a job has made so far, and its progress: a bar on a terminal, otherwise lines."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import Progress

from dongwu_jax.progress_bars import bar_with_words, clock

_LINE_SECONDS = 10.0  # between two lines


@dataclass
class Counts:
    """What was made.

    Attributes:
        requests: answered or set aside; a document without a prompt counts all its rounds.
        samples: of them, those that became samples.
        found: samples that an earlier process had made; they are not among `requests`.
        prefix_tokens: of the samples.
        completion_tokens: generated for the samples.
        rejected: number of rejections by kind.
    """

    requests: int = 0
    samples: int = 0
    found: int = 0
    prefix_tokens: int = 0
    completion_tokens: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Counts") -> None:
        """Add what another process made."""
        self.requests += other.requests
        self.samples += other.samples
        self.found += other.found
        self.prefix_tokens += other.prefix_tokens
        self.completion_tokens += other.completion_tokens
        self.rejected.update(other.rejected)

    def in_words(self) -> str:
        """Samples and rejections."""
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.rejected.most_common())
        rejected = f"{self.rejected.total():,} rejected" + (f" ({kinds})" if kinds else "")
        found = f" (and {self.found:,} from before)" if self.found else ""
        return f"{self.samples:,} samples{found}, {rejected}"


class SynthesisProgress:
    """Counts against the clock, which runs from the first engine's start to the last answer."""

    def __init__(self, total_requests: int) -> None:
        self.counts = Counts()
        self._total = total_requests
        self._started = self._answered = self._shown = 0.0
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = bar_with_words(console)
            self._task = self._bar.add_task("synthesis", total=total_requests, words="")

    @property
    def seconds(self) -> float:
        """Between the first engine's start and the last answer: no loading, no shutting down."""
        return self._answered - self._started

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of finished samples."""
        return self.counts.completion_tokens / max(self.seconds, 1e-9)

    def remaining_seconds(self, requests: int) -> float:
        """How long `requests` more would take."""
        return requests * self.seconds / max(1, self.counts.requests)

    def start(self) -> None:
        """An engine is ready."""
        if not self._started:
            self._started = self._answered = self._shown = time.monotonic()
            if self._bar is not None:
                self._bar.start()

    def add(self, counts: Counts) -> None:
        """Count, and show it now and then."""
        self.counts.add(counts)
        now = self._answered = time.monotonic()
        if self._bar is not None:
            done = self.counts.requests + self.counts.found
            self._bar.update(self._task, completed=done, words=self._words())
        elif now - self._shown >= _LINE_SECONDS:
            self._shown = now
            done = self.counts.requests + self.counts.found
            eta = clock(self.remaining_seconds(self._total - done))
            print(
                f"{done / self._total:.1%}, {self._words()}, ETA {eta}", file=sys.stderr, flush=True
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def rates(self) -> str:
        """Speed in words."""
        speed = self.tokens_per_second
        return f"{speed:,.0f} tokens/s, {speed * 86_400 / 1e9:.4g} B tokens a day"

    def summary(self) -> dict[str, Any]:
        """Counts and speed for the list of runs."""
        return {
            "samples": self.counts.samples,
            "found": self.counts.found,
            "rejected": dict(self.counts.rejected),
            "prefix_tokens": self.counts.prefix_tokens,
            "completion_tokens": self.counts.completion_tokens,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(self.tokens_per_second, 1),
        }

    def _words(self) -> str:
        return f"{self.counts.in_words()}, {self.rates()}"
