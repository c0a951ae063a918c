"""Moving a model from one format to another."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dongwu_jax.data.tokenizers import load_fitting_tokenizer, tokenizer_files
from dongwu_jax.errors import UserError
from dongwu_jax.interop.atomic_folder import new_folder
from dongwu_jax.interop.hf import is_hugging_face_folder
from dongwu_jax.interop.hf_export import DEFAULT_SHARD_BYTES, write_hugging_face
from dongwu_jax.interop.safetensors_files import DTYPES
from dongwu_jax.interop.sources import ModelSource
from dongwu_jax.models.parameters import parameter_tree
from dongwu_jax.training.checkpoints import is_checkpoint, save_weights

TARGET_FORMATS = ("hf", "dongwu")


def convert(
    source: ModelSource,
    target: Path,
    target_format: str,
    dtype: str | None = None,
    tokenizer: Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write `source` to the folder `target`; it appears there only when complete.

    Args:
        target_format: "hf", streamed tensor by tensor, or "dongwu", a checkpoint of ours, float32,
            which needs the model in host memory.
        dtype: format of the stored weights of "hf"; None: the source's.
        tokenizer: takes the place of the source's own.
        progress: called with the bytes of each tensor that is read and stored.

    Raises:
        UserError: the target exists, the tokenizer belongs to another model, or the combination is
            impossible.
    """
    if overwrite and target.is_dir() and any(target.iterdir()) and not _is_model(target):
        raise UserError(f"{target}: holds something else than a model; it is not overwritten")
    tokenizer = tokenizer or source.tokenizer
    if tokenizer is not None:
        load_fitting_tokenizer(tokenizer, source.config.vocab_size)
    if target_format == "dongwu":
        if dtype not in (None, "float32"):
            raise UserError(
                f"--dtype {dtype}: checkpoints of ours are always float32; leave it out"
            )
        with new_folder(target, overwrite) as folder:
            _write_checkpoint(source, folder, tokenizer, progress)
        return
    chosen = dtype or source.dtype
    if chosen not in DTYPES:
        raise UserError(f"the weights are stored as {chosen}; choose --dtype {' or '.join(DTYPES)}")
    with new_folder(target, overwrite) as folder:
        write_hugging_face(
            folder, source.config, source.read, chosen, tokenizer, max_shard_bytes, progress
        )


def _is_model(path: Path) -> bool:
    return is_hugging_face_folder(path) or is_checkpoint(path)


def _write_checkpoint(
    source: ModelSource, folder: Path, tokenizer: Path | None, progress: Callable[[int], None]
) -> None:
    weights = {}
    for name in source.names():
        weights[name] = np.ascontiguousarray(source.read(name), dtype=np.float32)
        progress(weights[name].nbytes)
    files = tokenizer_files(tokenizer) if tokenizer else []
    save_weights(folder, source.config, parameter_tree(weights), files)
