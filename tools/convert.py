"""Convert a model between formats.

Example:
  python tools/convert.py --from runs/finance/checkpoints --to export/finance --to-format hf \\
      --dtype bfloat16
"""

import argparse
import re
from math import prod
from pathlib import Path

import numpy as np

from dongwu_jax.command_line import run_command_line
from dongwu_jax.data.progress import ByteProgress
from dongwu_jax.errors import UserError
from dongwu_jax.interop.convert import TARGET_FORMATS, convert
from dongwu_jax.interop.safetensors_files import DTYPES
from dongwu_jax.interop.sources import ModelSource, open_source
from dongwu_jax.interop.tensors import model_tensors

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_NAMES = {"hf": "a Hugging Face folder", "gguf": "a GGUF file", "dongwu": "a dongwu checkpoint"}


def main(command_line: list[str] | None = None) -> int:
    """Parse the command line, convert, report."""
    arguments = _parser().parse_args(command_line)
    if arguments.target.resolve() in arguments.source.resolve().parents:
        raise UserError(f"--to {arguments.target} holds --from {arguments.source}")
    source = open_source(arguments.source)
    try:
        _convert(source, arguments)
    finally:
        source.close()
    return 0


def _convert(source: ModelSource, arguments: argparse.Namespace) -> None:
    dtype = "float32" if arguments.to_format == "dongwu" else arguments.dtype or source.dtype
    shapes = [tensor.shape for tensor in model_tensors(source.config)]
    written: list[int] = []  # bytes of each tensor

    def advance(num_bytes: int) -> None:
        written.append(num_bytes)
        bar.update(sum(written), tensors=len(written))

    total = sum(map(prod, shapes)) * np.dtype(dtype).itemsize
    with ByteProgress("convert", total, tensors=0) as bar:
        convert(
            source,
            arguments.target,
            arguments.to_format,
            dtype=arguments.dtype,
            tokenizer=arguments.tokenizer,
            max_shard_bytes=arguments.max_shard_size,
            overwrite=arguments.overwrite,
            progress=advance,
        )
    tokenizer = arguments.tokenizer or source.tokenizer
    print(
        f"{arguments.source} is {_NAMES[source.format]}: {len(shapes)} tensors, {source.dtype}, "
        f"{'with' if tokenizer else 'without'} tokenizer; wrote {arguments.target}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--from",
        dest="source",
        type=Path,
        required=True,
        help="Hugging Face folder (safetensors), .gguf file, or checkpoint folder of a run or "
        "one step in it; the format is detected",
    )
    add("--to", dest="target", type=Path, required=True, help="folder to write")
    add(
        "--to-format",
        choices=TARGET_FORMATS,
        required=True,
        help="hf: safetensors for transformers and vLLM; dongwu: a checkpoint to train from",
    )
    add(
        "--dtype",
        choices=list(DTYPES),
        help="format of the weights in hf; default: as the source stores them (a checkpoint and "
        "a GGUF file give float32)",
    )
    add(
        "--max-shard-size",
        type=_bytes,
        default="5GB",
        metavar="SIZE",
        help="largest weight file of hf, e.g. 500MB (default 5GB)",
    )
    add(
        "--tokenizer",
        type=Path,
        help=".model file, tokenizer.json or folder to use instead of the source's tokenizer",
    )
    add("--overwrite", action="store_true", help="replace what is at --to")
    return parser


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]B)?", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise UserError(f"--max-shard-size {text}: write a size such as 500MB or 5GB")
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


if __name__ == "__main__":
    run_command_line(main)
