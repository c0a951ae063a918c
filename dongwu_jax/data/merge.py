"""Concatenate all indexed datasets of a folder into one, as Megatron's merge tool does."""

import logging
from pathlib import Path

from dongwu_jax.data.indexed_dataset import IndexedDataset, bin_path, idx_path
from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter, WriterPosition
from dongwu_jax.errors import UserError
from dongwu_jax.progress_bars import ByteProgress

_logger = logging.getLogger(__name__)


def merge_datasets(
    folder: Path, output_prefix: Path, multimodal: bool = False, overwrite: bool = False
) -> WriterPosition:
    """Append the datasets of `folder`, in lexicographic order of their names, to a new one.

    Args:
        folder: its `.bin`/`.idx` pairs are merged; sub-folders and other files are ignored.
        output_prefix: of the new dataset, outside `folder`.
        multimodal: keep the mode of every sequence.
        overwrite: replace a dataset of that name; otherwise it is an error.

    Returns:
        sequences, documents and tokens of the new dataset.

    Raises:
        UserError: there is nothing to merge, a file lacks its partner, token types differ, or
            the output is in `folder` or exists.
    """
    prefixes = _datasets_in(folder)
    if output_prefix.resolve().parent == folder.resolve():
        raise UserError(
            f"--output-prefix {output_prefix}: lies in the input folder {folder}, so that merging "
            "again would read its own output; choose a prefix elsewhere"
        )
    for file in (bin_path(output_prefix), idx_path(output_prefix)):
        if file.exists() and not overwrite:
            raise UserError(
                f"{file}: exists already; add --overwrite to replace it, or choose another "
                "--output-prefix"
            )
    total = sum(bin_path(prefix).stat().st_size for prefix in prefixes)
    dtype = IndexedDataset(prefixes[0]).dtype
    with (
        IndexedDatasetWriter(output_prefix, dtype, multimodal) as writer,
        ByteProgress("merge", total, datasets=0) as progress,
    ):
        copied = 0
        for number, prefix in enumerate(prefixes, start=1):

            def advance(count: int, datasets: int = number) -> None:
                nonlocal copied
                copied += count
                progress.update(copied, datasets=datasets)

            writer.add_index(prefix, advance)
    return writer.position


def _datasets_in(folder: Path) -> list[Path]:
    """Prefixes of all datasets in a folder, in plain lexicographic order."""
    if not folder.is_dir():
        raise UserError(f"--input {folder}: is no folder")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    ours = [path for path in files if path.suffix in (".bin", ".idx")]
    for path in ours:
        partner = path.with_suffix(".idx" if path.suffix == ".bin" else ".bin")
        if not partner.is_file():
            raise UserError(f"{path}: its partner {partner.name} is missing; restore or move it")
    if others := [path.name for path in files if path not in ours]:
        _logger.warning("%s: ignored, as they are no datasets: %s", folder, ", ".join(others))
    if not ours:
        raise UserError(f"--input {folder}: holds no .bin/.idx datasets")
    return [Path(stem) for stem in sorted({str(path.with_suffix("")) for path in ours})]
