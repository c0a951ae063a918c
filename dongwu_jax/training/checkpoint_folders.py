"""Where the steps of a checkpoint folder lie: no more than paths, so that looking is quick."""

from pathlib import Path

from dongwu_jax.errors import UserError

_ORBAX_MARKER = "commit_success.txt"  # lies in every item, the empty ones too


def newest_step(path: Path) -> Path:
    """The step folder that `path` means: itself, or the newest step inside it.

    Raises:
        UserError: there is no complete checkpoint at `path`.
    """
    if is_step(path):
        return path
    steps = [entry for entry in path.iterdir() if is_step(entry)] if path.is_dir() else []
    if not steps:
        raise UserError(f"{path}: holds no complete checkpoint of ours")
    return max(steps, key=lambda entry: int(entry.name))


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder of our checkpoints, or one step of it."""
    return is_step(path) or (path.is_dir() and any(is_step(entry) for entry in path.iterdir()))


def tokenizer_folder(path: Path) -> Path | None:
    """The tokenizer files inside the newest checkpoint at `path`, or None when it has none."""
    folder = newest_step(path) / "tokenizer"
    files = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    return folder if files - {_ORBAX_MARKER} else None


def is_step(path: Path) -> bool:
    """Whether a folder is a complete step."""
    return path.name.isdigit() and (path / "parameters").is_dir() and (path / "config").is_dir()
