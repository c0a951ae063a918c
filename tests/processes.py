"""Processes that a test starts: a port for them, waiting for what they do, and for their end."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def wait_until(
    condition: Callable[[], object],
    process: subprocess.Popen | None = None,
    seconds: float = 60,
    pause: float = 0.02,
) -> None:
    """Wait for a condition; fail after so many seconds.

    Args:
        process: that is to bring it about. Its end is a failure, too, and a failure its end.
    """
    deadline = time.monotonic() + seconds
    try:
        while not condition():
            ended = process and process.poll()
            assert ended is None, f"the process ended with {ended} before what was waited for"
            assert time.monotonic() < deadline, f"waited for more than {seconds} seconds"
            time.sleep(pause)
    except AssertionError:
        if process:
            process.kill()
        raise


def lives(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def all_gone(pids: Iterable[int]) -> bool:
    """Whether none of them runs."""
    return not any(map(lives, pids))
