"""An Orbax item that holds small files byte for byte, such as a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath


class FilesHandler(ocp.CheckpointHandler):
    """Copies files into the checkpoint, under their own names; readers open them where they lie."""

    def save(self, directory: epath.Path, args: "SaveFiles") -> None:
        """Copy the files into `directory`; the first process does, for all."""
        if jax.process_index() == 0:
            for file in args.files:
                (directory / file.name).write_bytes(file.read_bytes())

    def restore(self, directory: epath.Path, args: Any = None) -> None:
        """Nothing to load: the files are read where they lie."""


@ocp.args.register_with_handler(FilesHandler, for_save=True)
@dataclass
class SaveFiles(ocp.args.CheckpointArgs):
    """Files to keep inside a checkpoint."""

    files: Sequence[Path]


@ocp.args.register_with_handler(FilesHandler, for_restore=True)
@dataclass
class RestoreFiles(ocp.args.CheckpointArgs):
    """Orbax wants a handler to name its restore arguments, too."""
