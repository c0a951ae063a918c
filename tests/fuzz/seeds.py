"""Small valid inputs of every format, to be damaged: a folder for each reader.

Made by the libraries that own a format where there is one, else by the project's own writers.
"""

from pathlib import Path

from job_seeds import write_caches, write_synthesis
from model_seeds import write_models, write_torch_files
from run_seeds import write_checkpoints, write_configs, write_run_folder
from text_seeds import (
    write_chat,
    write_datasets,
    write_evaluations,
    write_texts,
    write_tokenizers,
)


def build_seeds(root: Path) -> None:
    """Write all of them below `root`; the later ones use files of the earlier."""
    for write in (
        *(write_texts, write_datasets, write_tokenizers, write_chat, write_evaluations),
        *(write_configs, write_torch_files, write_caches, write_synthesis, write_run_folder),
        *(write_models, write_checkpoints),
    ):
        write(root)
