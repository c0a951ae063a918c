"""How far long work is, on stderr: a bar on a terminal, otherwise a line now and then."""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_MIN_SECONDS = 1.0  # between two lines


class ByteProgress:
    """Work through files: how far it is in bytes, the counts so far, their rates and the ETA.

    Args:
        title: what is being done.
        total_bytes: of all files.
        done_bytes: of them, done by an earlier process.
        log_interval: the first of the counts grows by at least this much between two lines.
        counts: what is counted, and the counts an earlier process reached.
    """

    def __init__(
        self,
        title: str,
        total_bytes: int,
        done_bytes: int = 0,
        log_interval: int = 1,
        **counts: int,
    ) -> None:
        self._title, self._total, self._first_bytes = title, total_bytes, done_bytes
        self._log_interval = log_interval
        self._first_counts = counts
        self._logged_count = next(iter(counts.values()))
        self._started = self._logged_at = time.monotonic()
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = bar_with_words(console)
            self._task = self._bar.add_task(title, total=total_bytes, words="")

    def update(self, done_bytes: int, **counts: int) -> None:
        """Report the bytes done and the counts reached, e.g. documents=..., tokens=..."""
        if self._bar is not None:
            words = self._rates(done_bytes, counts)
            self._bar.update(self._task, completed=done_bytes, words=words)
            return
        now = time.monotonic()
        count = next(iter(counts.values()))
        grown = count - self._logged_count >= self._log_interval
        if grown and now - self._logged_at >= _MIN_SECONDS:
            self._logged_at, self._logged_count = now, count
            self._print(done_bytes, counts)

    def _print(self, done_bytes: int, counts: dict[str, int]) -> None:
        speed = (done_bytes - self._first_bytes) / (time.monotonic() - self._started + 1e-9)
        share = done_bytes / max(1, self._total)
        eta = clock((self._total - done_bytes) / max(1.0, speed))
        reached = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        rates = self._rates(done_bytes, counts)
        line = f"{self._title}: {share:.1%}, {reached}, {rates}, ETA {eta}"
        print(line, file=sys.stderr, flush=True)

    def _rates(self, done_bytes: int, counts: dict[str, int]) -> str:
        elapsed = time.monotonic() - self._started + 1e-9
        texts = [f"{_short((done_bytes - self._first_bytes) / elapsed)}B/s"]
        for name, count in counts.items():
            texts.append(f"{_short((count - self._first_counts[name]) / elapsed)} {name}/s")
        return " ".join(texts)

    def __enter__(self) -> "ByteProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _short(rate: float) -> str:
    """A rate in few characters, such as 2.2M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= factor:
            return f"{rate / factor:.1f}{letter}"
    return f"{rate:.1f}"


@contextmanager
def token_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for work that is counted in tokens; gives what to call with how many more are done."""
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress("{task.description}", *columns, console=Console(stderr=True)) as bar:
        yield functools.partial(bar.advance, bar.add_task(title, total=total))


class _Rate(ProgressColumn):
    """Tokens a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} tokens/s")


def bar_with_words(console: Console) -> Progress:
    """A bar whose tasks say how they are in the field `words`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
        console=console,
    )


def clock(seconds: float) -> str:
    """Days, hours, minutes, seconds."""
    whole = int(seconds)
    days = f"{whole // 86_400} d " if whole >= 86_400 else ""
    return f"{days}{whole // 3600 % 24}:{whole // 60 % 60:02}:{whole % 60:02}"
