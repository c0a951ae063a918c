"""What XLA complains about while it compiles: it logs from C++, past Python's `sys.stderr`."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax


@dataclass
class CapturedText:
    """Filled when the capture ends."""

    text: str = ""


@contextmanager
def capture_stderr() -> Iterator[CapturedText]:
    """Catch all that the process, C++ included, writes to file descriptor 2.

    What was caught is passed on when the body raises, so that no explanation is lost.
    """
    captured = CapturedText()
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield captured
        except BaseException:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.write(2, _content(file.fileno()))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            captured.text = _content(file.fileno()).decode(errors="replace")


def involuntary_rematerialization(log: str) -> list[str]:
    """The lines in which the partitioner says that it replicated a whole array to reshard it.

    Such an array is gathered in full on every device: a layout went wrong.
    """
    return [line.strip() for line in log.splitlines() if _COMPLAINT in line]


def compile_quietly(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, list[str]]:
    """Compile, and return the program with the partitioner's complaints instead of printing them.

    The compiler is silent about what a compilation cache already holds.
    """
    with capture_stderr() as captured:
        compiled = lowered.compile()
    return compiled, involuntary_rematerialization(captured.text)


_COMPLAINT = "nvoluntary full rematerialization"


def _content(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, os.fstat(descriptor).st_size)
