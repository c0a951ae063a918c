"""Loaded by every Python process of a watched run: connections and writes are noted, and refused
where they lead out of this machine. WATCH_NOTES names the file of notes.
"""

import os
import sys

_NOTES = os.environ.get("WATCH_NOTES", "")
_HERE = ("127.", "localhost", "::1", "0.0.0.0", "::")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_noting = False


def _note(kind: str, text: str) -> None:
    global _noting
    _noting = True
    try:
        with open(_NOTES, "a", encoding="utf-8") as file:
            file.write(f"{kind} {text}\n")
    finally:
        _noting = False


def _hear(event: str, arguments: tuple) -> None:
    if _noting:
        return
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = str(address[0]) if isinstance(address, tuple) else "localhost"  # else a path
        if not host.startswith(_HERE):
            _note("connect", str(address))
            raise OSError(f"a connection to {address}")
    elif event == "socket.getaddrinfo":
        host = arguments[0]
        host = host.decode() if isinstance(host, bytes) else str(host or "localhost")
        if not host.startswith(_HERE) and host != os.uname().nodename:
            _note("connect", host)
            raise OSError(f"a look-up of {host}")
    elif (path := _written(event, arguments)) is not None:
        _note("write", os.path.abspath(os.fsdecode(path)))


def _written(event: str, arguments: tuple) -> str | bytes | None:
    """The path that is written to, made or asked for."""
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        writes = flags & _WRITING
    elif event == "os.mkdir":
        writes = arguments[-1] in (-1, None)  # else relative to an open folder
    else:
        writes = event in ("tempfile.mkstemp", "tempfile.mkdtemp")
    return arguments[0] if writes and isinstance(arguments[0], str | bytes) else None


if _NOTES:
    sys.addaudithook(_hear)
