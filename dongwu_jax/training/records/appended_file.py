"""Files that a run appends to while it trains: a full disk delays what they hold.

What cannot be written waits in memory and is written in its order when there is room again.
"""

import contextlib
import logging
import os
from collections import deque
from itertools import islice
from pathlib import Path

logger = logging.getLogger(__name__)

MOST_WAITING = 10_000
"""Records that wait at most; a few kilobytes each."""
_AT_ONCE = 500  # records: what fits on the disk is there, though not all may


class AppendedFile:
    """A file of records, whole ones only, whose end they are put at."""

    def __init__(self, path: Path):
        """Nothing is written, and no folder made, before the first record."""
        self._path = path
        self._waiting: deque[bytes] = deque()
        self._dropped, self._failing = 0, False

    def append(self, record: bytes) -> None:
        """Write a record, after those that wait; if that fails it waits, too.

        That is said once. Of more than `MOST_WAITING` records the oldest are dropped.
        """
        self._waiting.append(record)
        if len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        try:
            self._write_waiting()
        except OSError as error:
            if not self._failing:
                logger.warning(
                    "%s: cannot be written: %s; the run goes on, and what is to be written waits "
                    "in memory",
                    *(self._path, error),
                )
            self._failing = True
            return
        if self._failing:
            logger.warning("%s: is written again; %s", self._path, _lost(self._dropped))
        self._dropped, self._failing = 0, False

    def close(self) -> None:
        """Try once more to write what waits, and say what is lost."""
        if not self._waiting:
            return
        try:
            self._write_waiting()
        except OSError:
            lost = _lost(self._dropped + len(self._waiting))
            logger.warning("%s: could not be written to the end; %s", self._path, lost)

    def _write_waiting(self) -> None:
        while self._waiting:
            records = list(islice(self._waiting, _AT_ONCE))
            append_whole(self._path, b"".join(records))
            for _ in records:
                self._waiting.popleft()


def append_whole(path: Path, content: bytes) -> None:
    """Put all of `content` at the end of a file, or nothing; its folder is made.

    Raises:
        OSError: it cannot be written.
    """
    end = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Opened anew each time: a folder may have been exchanged, and NFS says when a file is
        # closed whether it had room.
        with path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
    except OSError:
        if end is not None:
            with contextlib.suppress(OSError):
                os.truncate(path, end)
        raise


def _lost(count: int) -> str:
    return f"records lost: {count}" if count else "nothing is lost"
