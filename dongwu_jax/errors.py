"""The one error type that command lines turn into a message and a non-zero exit."""

_END = 1500  # characters of a long message that are kept at each end


class UserError(Exception):
    """Something the user can mend: bad input, bad configuration, a missing file.

    The message names the file or field, the value found and the fix. Command lines print it
    without a stack trace; any other exception is a defect of ours and keeps its trace.
    """

    exit_code = 1

    def __str__(self) -> str:
        """The message; a value in it that fills pages is cut in its middle."""
        message = super().__str__()
        if len(message) <= 2 * _END:
            return message
        return f"{message[:_END]} [...] {message[-_END:]}"
