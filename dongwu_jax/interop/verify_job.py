"""Comparing two models as the command line does: one screen that says whether they are the same."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.logits import (
    fixed_tokens,
    has_transformers,
    our_logits,
    transformers_logits,
)
from dongwu_jax.interop.model_source import ModelSource
from dongwu_jax.interop.sources import correct_config, open_source
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.interop.verify import (
    TensorComparison,
    compare_weights,
    differing_settings,
    differing_vocabulary,
    shared_vocabulary,
)
from dongwu_jax.progress_bars import ByteProgress

_LOGIT_TOLERANCE = 1e-3  # of the largest logit, or of 1: float32 sums in another order


def run_verification(
    first_path: Path,
    second_path: Path,
    logits: bool,
    tolerance: float,
    true_vocab_size: int | None,
    settings: Mapping[str, float],
) -> bool:
    """Print a comparison of two models.

    Returns:
        Whether weights, the settings that matter and, if asked for, logits agree.

    Raises:
        UserError: a model cannot be read, or their shapes differ.
    """
    sources = [open_source(first_path), open_source(second_path)]
    try:
        for name, path, source in zip("AB", (first_path, second_path), sources, strict=True):
            correct_config(source, true_vocab_size, settings)
            print(f"{name} = {path}: {source.description}, {source.dtype}")
        first, second = sources
        different = differing_settings(first.config, second.config)
        different += differing_vocabulary(first, second)
        for line in different:
            print(f"setting differs: {line}")
        comparisons = _compare_with_progress(first, second)
        _print_weights(comparisons, first, second)
        same = not different and all(
            row.equal or 0 < tolerance >= row.largest_difference for row in comparisons
        )
        if logits:
            same = _compare_logits(first, second) and same
        print("the models are the same" if same else "the models DIFFER")
        return same
    finally:
        for source in sources:
            source.close()


def _compare_with_progress(first: ModelSource, second: ModelSource) -> list[TensorComparison]:
    sizes = {tensor.name: int(np.prod(tensor.shape)) for tensor in model_tensors(first.config)}
    comparisons: list[TensorComparison] = []
    done = 0
    with ByteProgress("compare", sum(sizes.values()), tensors=0) as bar:
        for comparison in compare_weights(first, second):
            comparisons.append(comparison)
            done += sizes[comparison.name]
            bar.update(done, tensors=len(comparisons))
    return comparisons


def _print_weights(
    comparisons: list[TensorComparison], first: ModelSource, second: ModelSource
) -> None:
    table = Table("tensor", "A", "B", "equal", "largest difference", "where")
    for kind in dict.fromkeys(row.kind for row in comparisons):
        rows = [row for row in comparisons if row.kind == kind]
        equal = sum(row.equal for row in rows)
        worst = max(rows, key=lambda row: row.largest_difference)
        detail = ("", "") if equal == len(rows) else (f"{worst.largest_difference:.3g}", worst.name)
        table.add_row(kind, *worst.dtypes, f"{equal} of {len(rows)}", *detail)
    Console().print(table)
    shared = shared_vocabulary(first.config, second.config)
    for name, source in (("A", first), ("B", second)):
        surplus = source.config.vocab_rows - shared
        if surplus:
            print(f"vocabulary: the first {shared} rows were compared; {name} has {surplus} more")
    if any(len(set(row.dtypes)) > 1 for row in comparisons):
        print("dtypes differ: equal means after rounding to the coarser of the two")


def _compare_logits(first: ModelSource, second: ModelSource) -> bool:
    """Print how far logits lie from those of A in our model; whether they agree."""
    tokens = fixed_tokens(shared_vocabulary(first.config, second.config))
    results = {
        f"{name}, our model": our_logits(
            source.config, load_parameters(source.read, source.config), tokens
        )
        for name, source in (("A", first), ("B", second))
    }
    if has_transformers():
        for name, source in (("A", first), ("B", second)):
            results[f"{name}, transformers"] = transformers_logits(source, tokens)
    else:
        print("transformers is not installed: logits come from our model only")
    shared = shared_vocabulary(first.config, second.config)
    results = {name: values[..., :shared] for name, values in results.items()}
    reference = results["A, our model"]
    table = Table(f"logits of {tokens.size} fixed tokens, float32", "largest", "difference from A")
    differences = {name: _difference(values, reference) for name, values in results.items()}
    for name, values in results.items():
        table.add_row(name, f"{np.abs(values).max():.3f}", f"{differences[name]:.2e}")
    Console().print(table)
    allowed = _LOGIT_TOLERANCE * max(1.0, float(np.abs(reference).max()))
    return all(difference <= allowed for difference in differences.values())


def _difference(logits: np.ndarray, reference: np.ndarray) -> float:
    """The largest; 0 for equal ones, not a number where only one of them is."""
    if np.array_equal(logits, reference, equal_nan=True):
        return 0.0
    return float(np.abs(logits - reference).max())
