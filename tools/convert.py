"""Convert a model between Hugging Face, Meta, Megatron-LM and our checkpoints, or compare two.

Neither torch nor Megatron is needed, nothing read from a file is executed, and only a few tensors
are in memory at a time. What --from holds is detected.

Example:
  python tools/convert.py --from megatron/checkpoints --to export --to-format hf
  python tools/convert.py --from export --to resharded --to-format megatron \\
      --target-tensor-parallel-size 4 --target-pipeline-parallel-size 2 --target-naming legacy

Compare: python tools/convert.py verify megatron/checkpoints export --logits
(python tools/convert.py verify --help)
"""

import argparse
import sys
from pathlib import Path

from dongwu_jax.command_line import number, positive_int, run_command_line, size_in_bytes
from dongwu_jax.errors import UserError
from dongwu_jax.interop.conversion import TARGET_FORMATS, TargetOptions
from dongwu_jax.interop.conversion_job import Conversion, print_source_structure, run_conversion
from dongwu_jax.interop.megatron.tensors import NAMINGS
from dongwu_jax.interop.quantization import QUANTIZATIONS
from dongwu_jax.interop.sources import CORRECTABLE
from dongwu_jax.interop.targets import DTYPE_NAMES

_ONLY_FOR = {
    "--target-naming": ("megatron",),
    "--target-tensor-parallel-size": ("megatron", "meta"),
    "--target-pipeline-parallel-size": ("megatron",),
    "--target-virtual-pipeline-parallel-size": ("megatron",),
    "--make-vocab-size-divisible-by": ("megatron", "torch_dist"),
    "--max-shard-size": ("hf",),
    "--hf-weights": ("hf",),
}


def main(command_line: list[str] | None = None) -> int:
    """Parse the command line and convert or verify."""
    words = sys.argv[1:] if command_line is None else command_line
    if words[:1] == ["verify"]:
        return _verify(_verify_parser().parse_args(words[1:]))
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.target is None and arguments.print_structure:
        print_source_structure(arguments.source, arguments.base_weights)
        return 0
    if arguments.target is None or arguments.to_format is None:
        parser.error("--to and --to-format say what to write")
    usual = parser.parse_args(["--from", ""])
    for flag, formats in _ONLY_FOR.items():
        name = flag.removeprefix("--").replace("-", "_")
        if arguments.to_format not in formats and getattr(arguments, name) != getattr(usual, name):
            print(f"{flag} has no effect on {arguments.to_format}")
    run_conversion(_conversion(arguments))
    return 0


def _conversion(arguments: argparse.Namespace) -> Conversion:
    options = TargetOptions(
        format=arguments.to_format,
        dtype=DTYPE_NAMES[arguments.dtype] if arguments.dtype else None,
        tokenizer=arguments.tokenizer,
        max_shard_bytes=arguments.max_shard_size,
        weights=arguments.hf_weights,
        quantize=arguments.quantize,
        naming=arguments.target_naming,
        tensor_parallel=arguments.target_tensor_parallel_size,
        pipeline_parallel=arguments.target_pipeline_parallel_size,
        virtual_pipeline=arguments.target_virtual_pipeline_parallel_size,
        vocab_divisible_by=arguments.make_vocab_size_divisible_by,
    )
    return Conversion(
        source=arguments.source,
        target=arguments.target,
        options=options,
        base_weights=arguments.base_weights,
        true_vocab_size=arguments.true_vocab_size,
        settings=dict(map(_setting, arguments.set)),
        overwrite=arguments.overwrite,
        print_structure=arguments.print_structure,
        dry_run=arguments.dry_run,
    )


def _verify(arguments: argparse.Namespace) -> int:
    from dongwu_jax.interop.verify_job import run_verification  # loads JAX

    equal = run_verification(
        arguments.first,
        arguments.second,
        logits=arguments.logits,
        tolerance=arguments.tolerance,
        true_vocab_size=arguments.true_vocab_size,
        settings=dict(map(_setting, arguments.set)),
    )
    return 0 if equal else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_source_options(parser)
    _add_target_options(parser)
    _add_megatron_options(parser)
    parser.add_argument(
        "--print-checkpoint-structure",
        dest="print_structure",
        action="store_true",
        help="print keys and shapes of what is written; without --to, of what --from holds",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything and list the files; write nothing"
    )
    return parser


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("source")
    group.add_argument(
        "--from",
        dest="source",
        type=Path,
        required=True,
        help="Hugging Face folder (safetensors or .bin), Meta folder (params.json), Megatron "
        "checkpoint (torch format of any naming and layout, or torch_dist; its root or one "
        "iteration), .gguf file, or a checkpoint folder of ours (a run's, or one step)",
    )
    group.add_argument(
        "--base-weights",
        type=Path,
        metavar="MODEL",
        help="the model that adapters (LoRA) in --from were trained on, when it is not where the "
        "run found it; the two are merged, unless --to-format is peft",
    )
    _add_corrections(group)


def _add_corrections(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--true-vocab-size",
        type=positive_int,
        metavar="V",
        help="rows of the vocabulary that are tokens; a Megatron checkpoint does not say how many "
        "of its rows are padding",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"a setting that the source does not say, or says wrongly: {', '.join(CORRECTABLE)}",
    )


def _add_target_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target")
    group.add_argument("--to", dest="target", type=Path, help="folder to write")
    group.add_argument(
        "--to-format",
        choices=TARGET_FORMATS,
        help="hf: for transformers and vLLM; meta: consolidated.NN.pth; megatron: torch format; "
        "torch_dist: Megatron's of today; dongwu: a checkpoint to train from; peft: the adapters "
        "of a run with lora.rank alone, for PEFT and vLLM",
    )
    group.add_argument(
        "--target-params-dtype",
        "--dtype",
        dest="dtype",
        choices=list(DTYPE_NAMES),
        help="format of the weights; default: as the source stores them",
    )
    group.add_argument(
        "--tokenizer",
        type=Path,
        help=".model file, tokenizer.json or folder to use instead of the source's tokenizer",
    )
    group.add_argument(
        "--max-shard-size",
        type=size_in_bytes,
        default="5GB",
        metavar="SIZE",
        help="hf: largest weight file, e.g. 500MB or 2GiB (default 5GB)",
    )
    group.add_argument(
        "--hf-weights",
        choices=["safetensors", "bin"],
        default="safetensors",
        help="hf: kind of weight files (default safetensors)",
    )
    group.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        help="hf: matrices of the blocks in 8 bits, for vLLM, which then multiplies in 8 bits. "
        "fp8: Hopper and Ada GPUs; int8: A100 and other GPUs since Turing, too. Embeddings, head, "
        "norms and biases stay in --target-params-dtype",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the model at --to")


def _add_megatron_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Megatron target")
    sizes = {"tensor": "also the number of files of meta", "pipeline": "", "virtual-pipeline": ""}
    for kind, remark in sizes.items():
        group.add_argument(
            f"--target-{kind}-parallel-size",
            type=positive_int,
            default=1,
            metavar="N",
            help=f"{'model chunks a stage' if kind == 'virtual-pipeline' else kind + ' ranks'} "
            f"(default 1){'; ' + remark if remark else ''}",
        )
    group.add_argument(
        "--target-naming",
        choices=NAMINGS,
        help="legacy: the GPT class of 2023; mcore, mcore_te: Megatron-Core with its local or its "
        "Transformer Engine layers; megatron_llama: Alibaba's fork. Default: as the source, else "
        "mcore_te",
    )
    group.add_argument(
        "--make-vocab-size-divisible-by",
        type=positive_int,
        default=128,
        metavar="N",
        help="pad the vocabulary to a multiple of N x tensor ranks, as Megatron does (default 128)",
    )


def _verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert.py verify",
        description="Compare two models tensor by tensor, whatever their formats. Equal means bit "
        "for bit; where the dtypes differ, equal after rounding to the coarser of the two. The "
        "exit code is 0 if they are equal, else 1.",
        epilog="example: python tools/convert.py verify megatron/checkpoints export --logits",
    )
    parser.add_argument("first", type=Path, help="any model that --from accepts")
    parser.add_argument("second", type=Path, help="any model that --from accepts")
    parser.add_argument(
        "--logits",
        action="store_true",
        help="also run both on fixed tokens in float32, through our model and, where it is "
        "installed, through transformers",
    )
    parser.add_argument(
        "--tolerance",
        type=number,
        default=0.0,
        help="largest difference of a weight that passes (default 0: equality)",
    )
    _add_corrections(parser.add_argument_group("of both models"))
    return parser


def _setting(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not equals or name not in CORRECTABLE:
        raise UserError(f"--set {text}: write NAME=VALUE with a name of {', '.join(CORRECTABLE)}")
    try:
        return name, float(value) if "." in value or "e" in value.lower() else int(value)
    except ValueError:
        raise UserError(f"--set {text}: {value!r} is not a number") from None


if __name__ == "__main__":
    run_command_line(main)
