"""The tokenizer that a Megatron checkpoint carries beside its weights."""

import shutil
from pathlib import Path

from dongwu_jax.data.tokenizers import tokenizer_files

_NAME = "tokenizer"


def find_tokenizer(iteration: Path) -> Path | None:
    """The folder `tokenizer` in an iteration's folder, or beside it; None: there is none."""
    for folder in (iteration / _NAME, iteration.parent / _NAME):
        if (folder / "tokenizer.json").is_file() or any(folder.glob("*.model")):
            return folder
    return None


def copy_tokenizer(tokenizer: Path | None, root: Path) -> None:
    """Copy a tokenizer's files into the folder `tokenizer` of a checkpoint; None: nothing."""
    if tokenizer is None:
        return
    (root / _NAME).mkdir()
    for file in tokenizer_files(tokenizer):
        shutil.copyfile(file, root / _NAME / file.name)
