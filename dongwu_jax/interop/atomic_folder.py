"""A folder that appears under its name only when it is complete."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dongwu_jax.errors import UserError


@contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `target`, renamed to it on success and removed on failure.

    Args:
        overwrite: replace what is at `target`; it stays until the new folder is complete.

    Raises:
        UserError: `target` exists and is not an empty folder, or cannot be written.
    """
    target = target.absolute()
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
        raise UserError(f"{target}: exists already; choose another name, or pass --overwrite")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error}") from None
    try:
        work = temporary / target.name
        work.mkdir()
        yield work
        _replace(target, work, temporary / "replaced")
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(target: Path, work: Path, replaced: Path) -> None:
    if target.exists():
        target.rename(replaced)
    try:
        work.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
