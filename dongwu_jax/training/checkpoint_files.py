"""An Orbax item that holds small files byte for byte, such as a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath


class FilesHandler(ocp.CheckpointHandler):
    """Copies files into the checkpoint, under their own names."""

    def save(self, directory: epath.Path, args: "SaveFiles") -> None:
        if jax.process_index() == 0:
            for file in args.files:
                (directory / file.name).write_bytes(file.read_bytes())

    def restore(self, directory: epath.Path, args: "RestoreFiles | None" = None) -> list[Path]:
        """The files, where they lie inside the checkpoint."""
        return [Path(file) for file in sorted(directory.iterdir()) if file.is_file()]


@ocp.args.register_with_handler(FilesHandler, for_save=True)
@dataclass
class SaveFiles(ocp.args.CheckpointArgs):
    """Files to keep inside a checkpoint."""

    files: Sequence[Path]


@ocp.args.register_with_handler(FilesHandler, for_restore=True)
@dataclass
class RestoreFiles(ocp.args.CheckpointArgs):
    """Ask where the kept files lie."""
