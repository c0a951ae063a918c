"""Moving a model from one format, layout and dtype to another."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dongwu_jax.data.tokenizers import load_fitting_tokenizer
from dongwu_jax.errors import UserError
from dongwu_jax.interop.atomic_folder import check_free, new_folder
from dongwu_jax.interop.hf import HuggingFaceSource
from dongwu_jax.interop.hf_export import DEFAULT_SHARD_BYTES, HuggingFaceTarget
from dongwu_jax.interop.megatron.distributed_export import TorchDistTarget
from dongwu_jax.interop.megatron.export import MegatronTarget
from dongwu_jax.interop.megatron.source import MegatronSource
from dongwu_jax.interop.megatron.stages import MegatronLayout, padded_vocab_size
from dongwu_jax.interop.megatron.tensors import Naming
from dongwu_jax.interop.meta_export import MetaTarget
from dongwu_jax.interop.model_source import MEGATRON_FORMATS, ModelSource
from dongwu_jax.interop.quantization import Quantization
from dongwu_jax.interop.sources import holds_one_model
from dongwu_jax.interop.targets import DTYPES, ModelTarget

TargetFormat = Literal["hf", "meta", "megatron", "torch_dist", "dongwu", "peft"]
TARGET_FORMATS: tuple[TargetFormat, ...] = get_args(TargetFormat)


@dataclass(frozen=True)
class TargetOptions:
    """How a model is to be written."""

    format: TargetFormat
    dtype: str | None = None  # None: as the source stores it
    tokenizer: Path | None = None  # None: the source's
    max_shard_bytes: int = DEFAULT_SHARD_BYTES  # hf
    weights: Literal["safetensors", "bin"] = "safetensors"  # hf
    quantize: Quantization | None = None  # hf
    naming: Naming | None = None  # megatron; None: the source's, else mcore_te
    tensor_parallel: int = 1  # megatron, meta
    pipeline_parallel: int = 1  # megatron
    virtual_pipeline: int = 1  # megatron
    vocab_divisible_by: int = 128  # megatron, torch_dist
    iteration: int | None = None  # megatron, torch_dist; None: the source's


def make_target(source: ModelSource, options: TargetOptions) -> ModelTarget:
    """The writer that the options describe.

    Raises:
        UserError: the tokenizer belongs to another model, the dtype cannot be written, or the
            files cannot hold quantized weights, or the source's are quantized already.
    """
    _check_quantize(source, options)
    config, dtype = source.config, options.dtype or source.dtype
    if dtype not in DTYPES:
        raise UserError(f"the weights are stored as {dtype}; choose {' or '.join(DTYPES)} to write")
    tokenizer = options.tokenizer or source.tokenizer
    if tokenizer is not None:
        load_fitting_tokenizer(tokenizer, config.vocab_size)
    if options.format == "hf":
        return HuggingFaceTarget(
            config,
            dtype,
            tokenizer,
            options.max_shard_bytes,
            options.weights,
            options.quantize,
        )
    if options.format == "meta":
        return MetaTarget(config, dtype, options.tensor_parallel, tokenizer)
    if options.format == "dongwu":
        # Loads JAX and Orbax, which no other format needs.
        from dongwu_jax.interop.checkpoint_target import CheckpointTarget

        return CheckpointTarget(config, dtype, tokenizer)
    if options.format == "peft":
        return _peft_target(source, options.dtype)
    iteration = source.iteration if options.iteration is None else options.iteration
    samples = source.consumed_samples or 0
    rows = _vocab_rows(source, options)
    if options.format == "torch_dist":
        return TorchDistTarget(config, dtype, rows, iteration, samples, tokenizer)
    naming = source.layout.naming if isinstance(source, MegatronSource) else "mcore_te"
    layout = MegatronLayout(
        options.naming or naming,
        options.tensor_parallel,
        options.pipeline_parallel,
        options.virtual_pipeline,
    )
    return MegatronTarget(config, dtype, layout, rows, iteration, samples, tokenizer)


def _peft_target(source: ModelSource, dtype: str | None) -> ModelTarget:
    from dongwu_jax.interop.adapter_source import MergedSource
    from dongwu_jax.interop.peft_export import PeftTarget

    if not isinstance(source, MergedSource):
        raise UserError(
            f"--to-format peft writes adapters, and there are none in a {source.format} model; "
            "name a checkpoint of a run with lora.rank"
        )
    run, base = source.run, source.base_config
    for name in ("rope_theta", "rope_scaling"):
        ours, theirs = getattr(source.config, name), getattr(base, name)
        if ours != theirs:
            raise UserError(
                f"--to-format peft: the run computes with model.{name}={ours}, {source.origin} "
                f"with {theirs}, which adapters cannot change; write the merged model "
                "(--to-format hf), or name weights that have it (--base-weights)"
            )
    source.check_base()
    return PeftTarget(run.model, run.lora, source.adapters, source.origin, dtype or "float32")


def convert(
    source: ModelSource,
    folder: Path,
    target: ModelTarget,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write `source` to `folder`, which appears only when it is complete.

    Args:
        overwrite: replace a model that is at `folder`; it stays until the new one is complete.
        progress: told the bytes of each tensor that has been written.

    Raises:
        UserError: `folder` exists or has too little room, or the model cannot be written so.
    """
    check_folder(folder, target, overwrite)
    with new_folder(folder, overwrite) as temporary:
        target.write(temporary, source.read, progress)


def check_folder(folder: Path, target: ModelTarget, overwrite: bool) -> None:
    """Whether the target may and can be written there, before anything is.

    Raises:
        UserError: something else is there, or there is too little room.
    """
    if overwrite and folder.is_dir() and any(folder.iterdir()) and not holds_one_model(folder):
        raise UserError(
            f"{folder}: holds something else than one model; it is not overwritten: move it away, "
            "or choose another name"
        )
    check_free(folder, overwrite)
    place = next(parent for parent in folder.absolute().parents if parent.is_dir())
    needed = sum(file.num_bytes(target.dtype) for file in target.files())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{folder}: needs {needed / 1e9:.2f} GB, but the disk has {free / 1e9:.2f} GB free"
        )


def _check_quantize(source: ModelSource, options: TargetOptions) -> None:
    if options.quantize is None:
        return
    if isinstance(source, HuggingFaceSource) and source.quantization is not None:
        raise UserError(
            f"--quantize {options.quantize}: {source.path} is quantized already "
            f"({source.quantization}), and its weights would be rounded twice; quantize the model "
            "that it was made from"
        )
    if options.format != "hf":
        raise UserError(
            f"--quantize {options.quantize} is for --to-format hf, and {options.format} has no "
            "such weights; leave one of them out"
        )
    if options.weights != "safetensors":
        raise UserError(
            f"--quantize {options.quantize} needs safetensors; leave out --hf-weights "
            f"{options.weights}"
        )


def _vocab_rows(source: ModelSource, options: TargetOptions) -> int:
    """Rows of the vocabulary in Megatron, as it computes them from the tokenizer.

    A Megatron checkpoint does not say how many of its rows are padding; then all are kept.
    """
    config, ranks = source.config, 1
    if options.format == "megatron":
        ranks = options.tensor_parallel
    padding_known = config.vocab_size < config.vocab_rows or source.format not in MEGATRON_FORMATS
    if not padding_known and config.vocab_rows % ranks == 0:
        return config.vocab_rows
    return padded_vocab_size(config.vocab_size, options.vocab_divisible_by, ranks)
