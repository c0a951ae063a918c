"""Files that appear under their names only when they are complete."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dongwu_jax.errors import UserError


def check_output_file(path: Path) -> None:
    """Make the folder of `path` and fail now, not after hours of work, if it cannot be written.

    Raises:
        UserError: `path` is a folder, or its folder cannot be made or written to.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path}: cannot be written: {path.parent} is no folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written: no permission in {path.parent}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside `path`, renamed at the end: `path` holds the old content or the new.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the name: it must survive a power cut, too
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_output_file(path: Path, content: bytes) -> None:
    """Write a file whole, as `replacing` does.

    Raises:
        UserError: it cannot be written.
    """
    with replacing(path) as file:
        file.write(content)


def write_json_file(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as `write_output_file` does; numpy's numbers become Python's.

    Raises:
        UserError: it cannot be written.
    """
    content = json.dumps(record, indent=2, ensure_ascii=False, default=_plain) + "\n"
    write_output_file(path, content.encode())


def _plain(value: Any) -> Any:
    """What JSON has no word for: numpy's numbers as Python's, the rest as text."""
    return value.item() if hasattr(value, "item") else str(value)
