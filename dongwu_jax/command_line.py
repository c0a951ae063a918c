"""What every command line shares: exit codes, one clear error, readable log lines."""

import argparse
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable

from rich.console import Console
from rich.logging import RichHandler

from dongwu_jax import exit_codes
from dongwu_jax.errors import UserError

_READER_IS_GONE = exit_codes.BY_SIGNAL + signal.SIGPIPE
_CHATTY_LIBRARIES = ("absl", "jax", "orbax", "grain", "lm_eval", "datasets", "matplotlib")
_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def run_command_line(main: Callable[[], int | None]) -> None:
    """Run `main` and exit: 0 on success, one clear line on a `UserError` and its exit code (1),
    130 on Ctrl-C; when the reader of our output goes away (`| head`), quietly as by SIGPIPE."""
    _configure_logging()
    code = _exit_code(main)
    try:
        if sys.stdout is not None:  # closed by the shell: >&-
            sys.stdout.flush()
    except OSError as error:
        code = _READER_IS_GONE
        if not isinstance(error, BrokenPipeError):
            print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
            code = exit_codes.FAILED
        # What is left in the buffer would be tried again, and complained of, on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _exit_code(main: Callable[[], int | None]) -> int | str | None:
    try:
        return main()
    except SystemExit as end:  # argparse's, after --help or a misspelt flag
        return end.code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # of another pipe
        return _READER_IS_GONE


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _configure_logging() -> None:
    """Our own messages from `info` on, of the libraries' only errors; stdout is for results."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[
            RichHandler(console=Console(stderr=True), show_path=False, log_time_format="[%X]")
        ],
    )
    for name in _CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


def whole_number(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def size_in_bytes(text: str) -> int:
    """An argparse type: the bytes that a text such as 500MB, 5GB or 2GiB means, at least 1."""
    match = re.fullmatch(r"(\d+)\s*(?:([KMG]I?)?B)?", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB, 5GB or 2GiB")
    return int(match[1]) * _BYTES[(match[2] or "").upper()]


def number(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value
