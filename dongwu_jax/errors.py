"""The one error type that command lines turn into a message and a non-zero exit."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend: bad input, bad configuration, a missing file.

    The message names the file or field, the value found and the fix. Command lines print it
    without a stack trace; any other exception is a defect of ours and keeps its trace.
    """


def run_command_line(main: Callable[[], int | None]) -> None:
    """Run `main` and exit: 0 on success, 1 with one clear line on a `UserError`, 130 on Ctrl-C."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
