"""Cut a big model into a smaller one: layers, hidden and feed-forward channels, heads.

Examples:
  python tools/prune.py --model /models/13b --calibration text.jsonl --output pruned \\
      --target num_layers=32,hidden_size=4096,intermediate_size=11008,num_attention_heads=32
  python tools/prune.py --model /models/13b --calibration text.jsonl --search 9B --candidates 10

The result is an ordinary model: it trains, exports, and loads in transformers and vLLM. --search
writes none: it ranks shapes of so many parameters and gives the --target of each.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dongwu_jax.command_line import positive_int, run_command_line, whole_number
from dongwu_jax.errors import UserError

if TYPE_CHECKING:
    from dongwu_jax.compress.calibration import Calibration


def main(arguments: list[str] | None = None) -> int:
    """Parse, and prune or search."""
    options = _parse(arguments)
    if options.search is None:
        _prune(options)
    else:
        _search(options)
    return 0


# What computes is imported by what runs it: JAX takes seconds to import, and --help should not.


def _prune(options: argparse.Namespace) -> None:
    from dongwu_jax.compress.pruning_job import Pruning, run_pruning
    from dongwu_jax.interop.conversion import TargetOptions
    from dongwu_jax.interop.targets import DTYPE_NAMES

    if options.output is None:
        raise UserError("--output: name the folder to write, or give --search to compare shapes")
    stored = None if options.target_dtype is None else DTYPE_NAMES[options.target_dtype]
    run_pruning(
        Pruning(
            options.model,
            options.output,
            options.target,
            options.method,
            options.drop_layers,
            options.layer_importance,
            _calibration(options),
            options.seed,
            options.tensor_parallel,
            TargetOptions(options.to_format, stored, options.tokenizer),
            options.report,
            options.overwrite,
            options.dry_run,
        )
    )


def _search(options: argparse.Namespace) -> None:
    from dongwu_jax.compress.shape_search import Search, run_search

    for flag in ("output", "target", "drop_layers"):
        if getattr(options, flag):
            raise UserError(
                f"--{flag.replace('_', '-')}: leave it out with --search, which chooses shapes and "
                "writes no model"
            )
    calibration = _calibration(options)
    if options.method != "activation" or calibration is None:
        raise UserError("--search: works with --method activation and needs --calibration")
    run_search(
        Search(
            options.model,
            options.search,
            options.candidates,
            calibration,
            options.layer_importance,
            options.tensor_parallel,
            options.report,
        )
    )


def _calibration(options: argparse.Namespace) -> "Calibration | None":
    from dongwu_jax.compress.calibration import Calibration

    if options.calibration is None:
        return None
    return Calibration(
        options.calibration,
        options.samples,
        options.length,
        options.dtype,
        options.tokenizer,
        options.fsdp,
    )


def _layers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: write layers from 0 on, e.g. 4,7")
    return tuple(map(int, parts))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="any format that tools/convert.py reads")
    add(
        "--output",
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder to write; it must not exist (not with --search)",
    )
    add(
        "--target",
        default="",
        metavar="SIZE=N,SIZE=N",
        help="num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, or Hugging "
        "Face's names for them; what is not named stays",
    )
    add(
        "--method",
        choices=["activation", "magnitude", "random"],
        default="activation",
        help="what decides: activations on calibration text (default), sizes of weights, chance",
    )
    add("--calibration", type=Path, metavar="TEXT", help=".jsonl, text file or .bin/.idx prefix")
    add("--samples", type=positive_int, default=128, help="sequences of it (default 128)")
    add("--length", type=positive_int, default=2048, help="tokens of each (default 2048)")
    add(
        "--layer-importance",
        choices=["block_influence", "perplexity"],
        default="block_influence",
        help="which layers go, with --method activation: those that turn the residual stream least "
        "(default), or those without which the loss rises least, which takes a forward pass for "
        "each layer",
    )
    add("--drop-layers", type=_layers, metavar="N,N", help="leave these out, counted from 0")
    add("--seed", type=whole_number, default=0, help="of --method random (default 0)")
    add(
        "--tensor-parallel",
        type=positive_int,
        default=1,
        metavar="N",
        help="ranks the result must divide by; random cuts each rank's part alike (default 1)",
    )
    add(
        "--search",
        metavar="SIZE",
        help="rank shapes of so many parameters (81M, 6.2B) by the perplexity of the pruned model "
        "on calibration tokens after those that importance comes from; writes no model",
    )
    add(
        "--candidates",
        type=positive_int,
        default=10,
        metavar="N",
        help="with --search: shapes to score, those that keep most importance (default 10)",
    )
    add(
        "--report",
        type=Path,
        metavar="FILE",
        help="also write what was chosen and the scores of layers, or the ranking, as JSON",
    )
    add("--to-format", choices=["hf", "dongwu"], default="hf", help="what to write (default hf)")
    add(
        "--target-dtype",
        choices=["fp32", "bf16", "fp16"],
        help="of the written weights (default: as --model stores them)",
    )
    add("--dtype", choices=["float32", "bfloat16"], help="of scoring; default: float32 on CPU")
    add("--tokenizer", type=Path, help="tokenizer to use instead of the model's own")
    add(
        "--fsdp",
        type=positive_int,
        default=1,
        metavar="N",
        help="devices that share one copy of the weights while scoring (default 1)",
    )
    add("--overwrite", action="store_true", help="replace a model that is at --output")
    add("--dry-run", action="store_true", help="say what would be cut, write nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
