"""Megatron-LLaMA's llama_checkpoint_conversion.py, by way of our converter: same flags.

Any tensor and pipeline parallel layout is read; no need to merge ranks first.

Examples:
  python tools/checkpoint_conversion/llama_checkpoint_conversion.py \\
      --convert_checkpoint_from_megatron_to_transformers --load_path megatron --save_path hf \\
      --target_params_dtype bf16 --print-checkpoint-structure
  python tools/checkpoint_conversion/llama_checkpoint_conversion.py \\
      --load_path hf --save_path megatron --target_tensor_model_parallel_size 4
"""

import argparse
from pathlib import Path

from dongwu_jax.command_line import positive_int, run_command_line, size_in_bytes
from dongwu_jax.interop.conversion import TargetOptions
from dongwu_jax.interop.conversion_job import Conversion, run_conversion
from dongwu_jax.interop.targets import DTYPE_NAMES

_WITHOUT_MEANING = {
    "--megatron-path": "Megatron is not needed",
    "--tokenizer_name": "the original never used it",
    "--target_data_parallel_size": "weights do not depend on it",
}
_ONLY_TO_MEGATRON = (
    "--target_tensor_model_parallel_size",
    "--target_pipeline_model_parallel_size",
    "--make_vocab_size_divisible_by",
)
_ONLY_TO_HUGGING_FACE = ("--max_shard_size",)


def main(command_line: list[str] | None = None) -> int:
    """Translate the original's flags and convert."""
    parser = _parser()
    arguments = parser.parse_args(command_line)
    for flag, reason in _WITHOUT_MEANING.items():
        if getattr(arguments, flag.removeprefix("--").replace("-", "_")) is not None:
            print(f"{flag} has no effect here: {reason}")
    to_hugging_face = arguments.convert_checkpoint_from_megatron_to_transformers
    for flag in _ONLY_TO_MEGATRON if to_hugging_face else _ONLY_TO_HUGGING_FACE:
        name = flag.removeprefix("--")
        if getattr(arguments, name) != parser.get_default(name):
            print(f"{flag} has no effect in this direction")
    if arguments.use_distributed_optimizer:
        print("--use_distributed_optimizer has no effect here: no optimizer state is written")
    dtype = DTYPE_NAMES[arguments.target_params_dtype] if arguments.target_params_dtype else None
    if to_hugging_face:
        options = TargetOptions(format="hf", dtype=dtype, max_shard_bytes=arguments.max_shard_size)
    else:
        options = TargetOptions(
            format="megatron",
            dtype=dtype,
            naming="legacy",
            tensor_parallel=arguments.target_tensor_model_parallel_size,
            pipeline_parallel=arguments.target_pipeline_model_parallel_size,
            vocab_divisible_by=arguments.make_vocab_size_divisible_by,
        )
    run_conversion(
        Conversion(
            arguments.load_path,
            arguments.save_path,
            options,
            true_vocab_size=arguments.true_vocab_size,
            overwrite=arguments.overwrite,
            print_structure=arguments.print_checkpoint_structure,
        )
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--convert_checkpoint_from_megatron_to_transformers",
        action="store_true",
        help="write a Hugging Face folder; without it, a Megatron checkpoint with legacy names",
    )
    add("--load_path", type=Path, required=True, help="model to read; its format is detected")
    add("--save_path", type=Path, required=True, help="folder to write")
    add(
        "--print-checkpoint-structure",
        action="store_true",
        help="print keys and shapes of what is written",
    )
    add(
        "--target_params_dtype",
        choices=list(DTYPE_NAMES),
        help="format of the weights; default: as the source stores them (the original: fp32)",
    )
    add("--target_tensor_model_parallel_size", type=positive_int, default=1, help="tensor ranks")
    add(
        "--target_pipeline_model_parallel_size", type=positive_int, default=1, help="pipeline ranks"
    )
    add(
        "--make_vocab_size_divisible_by",
        type=positive_int,
        default=128,
        help="to Megatron: pad the vocabulary to a multiple of this x tensor ranks (default 128)",
    )
    add("--true_vocab_size", type=positive_int, help="rows of the vocabulary without padding")
    add(
        "--max_shard_size",
        type=size_in_bytes,
        default="10GB",
        help="to Hugging Face: largest file (default 10GB)",
    )
    add("--overwrite", action="store_true", help="replace the model at --save_path")
    add("--use_distributed_optimizer", action="store_true", help="accepted, without effect")
    for flag, reason in _WITHOUT_MEANING.items():
        add(flag, help=f"accepted, without effect: {reason}")
    return parser


if __name__ == "__main__":
    run_command_line(main)
