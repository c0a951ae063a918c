"""Where the steps of a checkpoint folder lie: no more than paths, so that looking is quick."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dongwu_jax.errors import UserError

METADATA = "_CHECKPOINT_METADATA"  # Orbax writes it into every step
_ITEMS = ("parameters", "optimizer", "config", "data")
_ORBAX_MARKER = "commit_success.txt"  # lies in every item, the empty ones too


def newest_step(path: Path) -> Path:
    """The step folder that `path` means: itself, or the newest step inside it.

    Raises:
        UserError: there is no complete checkpoint at `path`, or it cannot be looked into.
    """
    with _looking_into(path):
        if is_step(path):
            return path
        steps = _steps_in(path)
    if not steps:
        raise UserError(f"{path}: holds no complete checkpoint of ours")
    return max(steps, key=lambda entry: int(entry.name))


def older_steps(step: Path) -> list[Path]:
    """The complete steps beside a step that come before it, newest first."""
    with _looking_into(step.parent):
        older = [entry for entry in _steps_in(step.parent) if int(entry.name) < int(step.name)]
    return sorted(older, key=lambda entry: -int(entry.name))


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder of our checkpoints, or one step of it.

    Raises:
        UserError: it cannot be looked into.
    """
    with _looking_into(path):
        return is_step(path) or bool(_steps_in(path))


def tokenizer_folder(path: Path) -> Path | None:
    """The tokenizer files inside the newest checkpoint at `path`, or None when it has none."""
    folder = newest_step(path) / "tokenizer"
    files = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    return folder if files - {_ORBAX_MARKER} else None


def is_step(path: Path) -> bool:
    """Whether a folder is a complete step."""
    return is_step_name(path.name) and (path / "parameters").is_dir() and (path / "config").is_dir()


def is_step_name(name: str) -> bool:
    """Whether a folder of this name can be a step: a number as Orbax writes it."""
    return name.isascii() and name.isdecimal() and name == str(int(name))


def _steps_in(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if is_step(entry)] if path.is_dir() else []


@contextmanager
def _looking_into(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror}") from None


def is_of_a_run(path: Path) -> bool:
    """Whether a folder with a number for its name is a step, be it damaged, and not anything else.

    Raises:
        OSError: it cannot be looked into, which says nothing.
    """
    names = {entry.name for entry in path.iterdir()}
    items = [name for name in _ITEMS if name in names]
    return {"parameters", "config"} <= names or (METADATA in names and bool(items))
