"""Converting in one call, as tests want it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dongwu_jax.interop.conversion import TargetOptions, convert, make_target
from dongwu_jax.interop.model_source import ModelSource


def convert_to(
    source: ModelSource,
    folder: Path,
    target_format: str,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda num_bytes: None,
    **options: Any,
) -> Path:
    """Write a source in another format; the options are those of `TargetOptions`."""
    chosen = TargetOptions(target_format, dtype, **options)  # type: ignore[arg-type]
    convert(source, folder, make_target(source, chosen), overwrite, progress)
    return folder
