"""A folder that appears under its name only when it is complete."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dongwu_jax.errors import UserError

_LOCK = "lock"
_REPLACED = "replaced"


@contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `target`, renamed to it on success and removed on failure.

    What a killed process left behind for the same target is removed first.

    Args:
        overwrite: replace what is at `target`; it stays until the new folder is complete.

    Raises:
        UserError: `target` exists and is not an empty folder, or cannot be written.
    """
    target = target.absolute()
    check_free(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        lock = _lock(temporary)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error}") from None
    try:
        work = temporary / target.name
        work.mkdir()
        yield work
        _replace(target, work, temporary / _REPLACED)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            lock.close()


def check_free(target: Path, overwrite: bool) -> None:
    """Whether a folder may appear under this name.

    Raises:
        UserError: something is there already.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
        raise UserError(f"{target}: exists already; choose another name, or pass --overwrite")


def _remove_abandoned(target: Path) -> None:
    """Remove temporary folders of this target whose process is gone: nobody holds their lock."""
    for folder in target.parent.glob(f".{target.name}.*"):
        if (folder / _LOCK).is_file():
            lock = _lock(folder)
            if lock is not None:
                if (folder / _REPLACED).is_dir() and not target.exists():
                    (folder / _REPLACED).rename(target)  # killed between two renames
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()


def _lock(folder: Path) -> BinaryIO | None:
    """The open lock file of a temporary folder, held until closed; None: another holds it."""
    file = (folder / _LOCK).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _replace(target: Path, work: Path, replaced: Path) -> None:
    if target.exists():
        target.rename(replaced)
    try:
        work.rename(target)
    except BaseException:  # Ctrl-C, too
        if replaced.exists():
            replaced.rename(target)
        raise
