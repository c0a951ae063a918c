"""Turn conversations into datasets for supervised fine-tuning: loss on the answers only.

Example:
  python tools/preprocess_chat.py --input sft.jsonl --output-prefix data/sft --tokenizer models/base

configs/sft.yaml trains on it: data.blend=data/sft_chat.

A line is {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]}, or
{"prompt": ..., "response": ...}. The tokenizer's own chat template writes them; every answer of the
assistant is trained, with the token that ends it. Writes PREFIX_chat (tokens) and
PREFIX_chat_trained (0 or 1 for each). Started again after it was killed, it goes on where it stood.
"""

import argparse
import os
import sys
from pathlib import Path

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.data.chat_samples import ChatSettings
from dongwu_jax.data.jsonl import expand_inputs
from dongwu_jax.data.preprocess import preprocess


def main(arguments: list[str] | None = None) -> int:
    """Parse and preprocess."""
    options = _parse(arguments)
    summary = preprocess(
        ChatSettings(options.tokenizer),
        expand_inputs(options.input),
        options.output_prefix,
        workers=options.workers,
        overwrite=options.overwrite,
        skip_bad_lines=options.bad_lines == "skip",
    )
    skipped = f", {summary.bad_lines:,} bad lines skipped" if summary.bad_lines else ""
    tokens = summary.tokens // len(summary.prefixes)
    print(f"{summary.documents:,} conversations, {tokens:,} tokens{skipped}; wrote")
    for prefix in summary.prefixes:
        print(f"  {prefix}.bin {prefix}.idx")
    if not summary.documents:
        print("warning: no line of the input became a conversation", file=sys.stderr)
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help="files, or patterns in quotes")
    add("--output-prefix", type=Path, required=True, help="start of the names of the datasets")
    add(
        "--tokenizer",
        type=Path,
        required=True,
        help="folder with tokenizer.json and the chat template (a model's own folder)",
    )
    add("--overwrite", action="store_true", help="replace finished outputs of the same name")
    add(
        "--bad-lines",
        choices=["stop", "skip"],
        default="stop",
        help="what to do at a line that is no conversation (default: stop)",
    )
    add(
        "--workers",
        type=positive_int,
        default=len(os.sched_getaffinity(0)),
        help="processes that encode (default: one per processor core)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
