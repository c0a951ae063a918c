"""What every command line shares: exit codes, one clear error, readable log lines."""

import argparse
import logging
import sys
from collections.abc import Callable

from rich.console import Console
from rich.logging import RichHandler

from dongwu_jax.errors import UserError

_CHATTY_LIBRARIES = ("absl", "jax", "orbax", "grain", "lm_eval", "datasets", "matplotlib")


def run_command_line(main: Callable[[], int | None]) -> None:
    """Run `main` and exit: 0 on success, one clear line on a `UserError` and its exit code (1),
    130 on Ctrl-C."""
    _configure_logging()
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


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


def number(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value
