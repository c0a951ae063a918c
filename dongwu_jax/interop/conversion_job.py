"""A conversion from start to end, as command lines run it: say what is found, convert, report."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dongwu_jax.errors import UserError
from dongwu_jax.interop.conversion import TargetOptions, check_folder, convert, make_target
from dongwu_jax.interop.freed_memory import keep_freed_memory
from dongwu_jax.interop.megatron.distributed_export import TorchDistTarget
from dongwu_jax.interop.megatron.export import MegatronTarget
from dongwu_jax.interop.megatron.export_arguments import OLD_ROTARY_BASE, start_flags
from dongwu_jax.interop.model_source import MEGATRON_FORMATS, ModelSource
from dongwu_jax.interop.sources import correct_config, open_source
from dongwu_jax.interop.targets import ModelTarget
from dongwu_jax.progress_bars import ByteProgress


@dataclass(frozen=True)
class Conversion:
    """What a command line asks for."""

    source: Path
    target: Path
    options: TargetOptions
    base_weights: Path | None = None  # see `open_source`
    true_vocab_size: int | None = None
    settings: Mapping[str, float] = field(default_factory=dict)  # see `correct_config`
    overwrite: bool = False
    print_structure: bool = False
    dry_run: bool = False


def run_conversion(conversion: Conversion) -> None:
    """Convert, and print what was found, what is written and what does not come along.

    Raises:
        UserError: see `open_source`, `make_target` and `convert`.
    """
    if conversion.target.resolve() in conversion.source.resolve().parents:
        raise UserError(f"--to {conversion.target} holds --from {conversion.source}")
    keep_freed_memory()
    source = open_source(conversion.source, conversion.base_weights)
    try:
        correct_config(source, conversion.true_vocab_size, conversion.settings)
        _describe(conversion.source, source)
        target = make_target(source, conversion.options)
        if conversion.options.virtual_pipeline > 1 == conversion.options.pipeline_parallel:
            print("  note: Megatron trains virtual stages only with 2 or more pipeline ranks")
        if conversion.print_structure:
            _print_structure(
                (f"{file.path}/{name}", shape)
                for file in target.files()
                for name, shape in file.tensors
            )
        if conversion.dry_run:
            check_folder(conversion.target, target, conversion.overwrite)
            _describe_plan(conversion.target, target, conversion.options)
        else:
            _convert(source, target, conversion)
    finally:
        source.close()


def print_source_structure(path: Path, base_weights: Path | None) -> None:
    """Print what a model's files hold.

    Args:
        base_weights: see `open_source`.
    """
    source = open_source(path, base_weights)
    try:
        _describe(path, source)
        _print_structure((name, shape) for name, shape, _ in source.stored())
    finally:
        source.close()


def _print_structure(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Print each key once, indented below the keys that hold it, and the shapes of tensors.

    Args:
        tensors: name, nested keys joined by `/`, and shape.
    """
    open_keys: list[str] = []
    for name, shape in tensors:
        *parents, leaf = name.split("/")
        shared = 0
        while shared < min(len(parents), len(open_keys)) and parents[shared] == open_keys[shared]:
            shared += 1
        for depth in range(shared, len(parents)):
            print(f"{'  ' * depth}{parents[depth]}")
        print(f"{'  ' * len(parents)}{leaf}: {list(shape)}")
        open_keys = parents


def _describe(path: Path, source: ModelSource) -> None:
    print(f"{path}: {source.description}, {source.dtype}")
    for note in source.notes:
        print(f"  note: {note}")


def _describe_plan(folder: Path, target: ModelTarget, options: TargetOptions) -> None:
    files = target.files()
    for file in files:
        size = file.num_bytes(target.dtype)
        print(f"  {file.path}: {len(file.tensors)} tensors, {size / 1e6:,.1f} MB")
    total = sum(file.num_bytes(target.dtype) for file in files)
    numbers = _numbers(target, options)
    print(f"{folder}: would hold {total / 1e9:.2f} GB of {numbers}; nothing was written")


def _numbers(target: ModelTarget, options: TargetOptions) -> str:
    """The formats of the weights, for people."""
    return f"{options.quantize} and {target.dtype}" if options.quantize else target.dtype


def write_model(
    verb: str,
    source: ModelSource,
    folder: Path,
    target: ModelTarget,
    options: TargetOptions,
    overwrite: bool,
) -> None:
    """Convert with a bar, and say what was written.

    Args:
        verb: what the bar calls the work.

    Raises:
        UserError: see `convert`.
    """
    total = sum(file.num_bytes(target.dtype) for file in target.files())
    written: list[int] = []

    def advance(num_bytes: int) -> None:
        written.append(num_bytes)
        bar.update(sum(written), tensors=len(written))

    with ByteProgress(verb, total, tensors=0) as bar:
        convert(source, folder, target, overwrite, advance)
    tokenizer = None if options.format == "peft" else options.tokenizer or source.tokenizer
    print(
        f"wrote {folder}: {options.format}, {_numbers(target, options)}, "
        f"{sum(written) / 1e9:.2f} GB, {'with' if tokenizer else 'without'} tokenizer"
    )


def _convert(source: ModelSource, target: ModelTarget, conversion: Conversion) -> None:
    options = conversion.options
    write_model("convert", source, conversion.target, target, options, conversion.overwrite)
    _report_training_state(source, conversion.options)
    if isinstance(target, MegatronTarget | TorchDistTarget):
        _report_megatron_flags(target)


def _report_megatron_flags(target: MegatronTarget | TorchDistTarget) -> None:
    """Name the settings that Megatron silently takes from its command line."""
    print(f"start Megatron with: {' '.join(start_flags(target.config))}")
    legacy = isinstance(target, MegatronTarget) and target.layout.naming == "legacy"
    if legacy and target.config.rope_theta != OLD_ROTARY_BASE:
        print(
            "note: a Megatron of 2023 has no --rotary-base and computes with "
            f"{OLD_ROTARY_BASE:g}, which is another model"
        )


def _report_training_state(source: ModelSource, options: TargetOptions) -> None:
    """Say what of a run's state came along, when there was a run."""
    if not source.iteration:
        return
    position = f"iteration {source.iteration}"
    if source.consumed_samples:
        position += f" and {source.consumed_samples} consumed samples"
    if options.format in MEGATRON_FORMATS:
        print(f"carried: weights, {position}; not carried: optimizer moments, random state")
        return
    what = "adapters" if options.format == "peft" else "weights"
    print(f"carried: {what}; not carried: {position}, optimizer moments")
    if source.format in MEGATRON_FORMATS and options.format == "dongwu":
        print("to go on training where Megatron stopped, set training.continue_from to the source")
