"""Datasets of given tokens."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter


def write_dataset(prefix: Path, documents: Iterable[Sequence[int]], dtype: str = "<u2") -> Path:
    """A dataset of these documents, of one sequence each; an empty one has none."""
    with IndexedDatasetWriter(prefix, np.dtype(dtype)) as writer:
        for document in documents:
            writer.add_document(document, [len(document)] if document else [])
    return prefix
