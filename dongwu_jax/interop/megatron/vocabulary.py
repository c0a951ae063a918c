"""Rows of the vocabulary that only padding adds."""

import numpy as np


def fit_rows(values: np.ndarray, vocab_size: int, rows: int) -> np.ndarray:
    """An embedding or a head, `[vocab, ...]`, with `rows` rows, every real one kept.

    Added rows repeat the last real one, as Megatron's own converter does.

    Args:
        vocab_size: tokens; rows beyond are padding.
        rows: wanted, `vocab_size` or more.
    """
    if rows <= len(values):
        return values[:rows]
    index = np.minimum(np.arange(rows), vocab_size - 1)
    return values[index]
