"""Megatron-LM's tools/checkpoint/util.py, by way of our converter: same flags, same folders.

Needs neither Megatron nor torch. What --load-dir holds is detected; dtype and length are kept.

Examples:
  python tools/checkpoint/util.py --model-type GPT --loader llama2_hf --saver megatron \\
      --load-dir llama-hf --save-dir llama-tp4 --target-tensor-parallel-size 4
  python tools/checkpoint/util.py --model-type GPT --loader megatron --saver megatron \\
      --load-dir llama-tp4 --save-dir llama-tp8 --target-tensor-parallel-size 8
"""

import argparse
from pathlib import Path

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.errors import UserError
from dongwu_jax.interop.conversion import TargetOptions
from dongwu_jax.interop.conversion_job import Conversion, run_conversion
from dongwu_jax.interop.megatron.source import MegatronSource
from dongwu_jax.interop.megatron.stages import MegatronLayout
from dongwu_jax.interop.megatron.tensors import Naming
from dongwu_jax.interop.model_source import MEGATRON_FORMATS
from dongwu_jax.interop.sources import open_source

_LOADERS = {
    "megatron": MEGATRON_FORMATS,
    "mcore": MEGATRON_FORMATS,
    "core": MEGATRON_FORMATS,
    "llama2_hf": ("hf",),
    "llama2": ("hf", "meta"),
    "llama_mistral": ("hf", "meta"),
}
_SAVERS = ("megatron", "mcore", "core")
_WITHOUT_MEANING = {
    "--megatron-path": "Megatron is not needed",
    "--max-queue-size": "tensors are streamed",
    "--no-checking": "everything is always checked",
    "--loader-transformer-impl": "names are detected",
    "--position-embedding-type": "read from the checkpoint",
    "--model-size": "read from the checkpoint",
    "--checkpoint-type": "detected",
}


def main(command_line: list[str] | None = None) -> int:
    """Translate Megatron's flags and convert."""
    arguments = _parser().parse_args(command_line)
    for flag, reason in _WITHOUT_MEANING.items():
        if getattr(arguments, flag.removeprefix("--").replace("-", "_")) not in (None, False):
            print(f"{flag} has no effect here: {reason}")
    source = open_source(arguments.load_dir)
    source.close()
    if source.format not in _LOADERS[arguments.loader]:
        raise UserError(
            f"--loader {arguments.loader}: {arguments.load_dir} is a {source.description}"
        )
    in_megatron = source.format in MEGATRON_FORMATS
    layout = source.layout if isinstance(source, MegatronSource) else MegatronLayout("legacy")
    options = TargetOptions(
        format="megatron",
        dtype=_dtype(arguments),
        tokenizer=arguments.tokenizer_model,
        naming=_naming(arguments),
        tensor_parallel=arguments.target_tensor_parallel_size or layout.tensor_parallel,
        pipeline_parallel=arguments.target_pipeline_parallel_size or layout.pipeline_parallel,
        vocab_divisible_by=arguments.make_vocab_size_divisible_by,
        iteration=None if in_megatron else 1,  # as Megatron's own loader for Hugging Face
    )
    run_conversion(
        Conversion(
            arguments.load_dir,
            arguments.save_dir,
            options,
            true_vocab_size=_true_vocab_size(arguments),
            overwrite=arguments.overwrite,
        )
    )
    return 0


def _naming(arguments: argparse.Namespace) -> Naming:
    if arguments.saver == "megatron":
        return "legacy"
    return "mcore" if arguments.saver_transformer_impl == "local" else "mcore_te"


def _dtype(arguments: argparse.Namespace) -> str | None:
    if arguments.bf16:
        return "bfloat16"
    return "float16" if arguments.fp16 else None


def _true_vocab_size(arguments: argparse.Namespace) -> int | None:
    if arguments.true_vocab_size is not None or arguments.vocab_file is None:
        return arguments.true_vocab_size
    try:
        return len(arguments.vocab_file.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--vocab-file {arguments.vocab_file}: cannot be read: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-type", choices=["GPT"], required=True, help="GPT; BERT is not supported")
    add("--loader", choices=list(_LOADERS), default="megatron", help="kind of --load-dir")
    add("--saver", choices=_SAVERS, default="megatron", help="megatron: legacy; mcore, core: mcore")
    add("--load-dir", type=Path, required=True, help="model to read")
    add("--save-dir", type=Path, required=True, help="Megatron checkpoint to write")
    add("--target-tensor-parallel-size", type=positive_int, help="default: as the source, else 1")
    add("--target-pipeline-parallel-size", type=positive_int, help="default: as the source, else 1")
    add("--saver-transformer-impl", choices=["local", "transformer_engine"], help="names of mcore")
    add("--tokenizer-model", type=Path, help="tokenizer to keep beside the weights")
    add("--true-vocab-size", type=positive_int, help="rows of the vocabulary without padding")
    add("--vocab-file", type=Path, help="one token a line: its length is the true vocabulary size")
    add(
        "--make-vocab-size-divisible-by",
        type=positive_int,
        default=1,
        help="pad the vocabulary to a multiple of this x tensor ranks (default 1, as Megatron's)",
    )
    dtype = parser.add_mutually_exclusive_group()
    dtype.add_argument("--bf16", action="store_true", help="store bfloat16; default: as the source")
    dtype.add_argument("--fp16", action="store_true", help="store float16; default: as the source")
    add("--overwrite", action="store_true", help="replace the model at --save-dir")
    for flag, reason in _WITHOUT_MEANING.items():
        switch = {"action": "store_true"} if flag == "--no-checking" else {}
        add(flag, help=f"accepted, without effect: {reason}", **switch)  # type: ignore[arg-type]
    return parser


if __name__ == "__main__":
    run_command_line(main)
