"""The one error type that command lines turn into a message and a non-zero exit."""


class UserError(Exception):
    """Something the user can mend: bad input, bad configuration, a missing file.

    The message names the file or field, the value found and the fix. Command lines print it
    without a stack trace; any other exception is a defect of ours and keeps its trace.
    """

    exit_code = 1
