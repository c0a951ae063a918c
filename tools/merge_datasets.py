"""Merge all .bin/.idx datasets of a folder into one, in lexicographic order of their names.

Example:
    python tools/merge_datasets.py --input data/parts --output-prefix data/corpus_text_document
"""

import argparse
from pathlib import Path

from dongwu_jax.command_line import run_command_line
from dongwu_jax.data.merge import merge_datasets


def main(command_line: list[str] | None = None) -> int:
    """Parse the command line and merge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", type=Path, required=True, help="folder of datasets; other files are ignored"
    )
    parser.add_argument(
        "--output-prefix",
        type=Path,
        required=True,
        help="the new dataset without .bin/.idx, not inside the input folder",
    )
    parser.add_argument(
        "--multimodal", action="store_true", help="the datasets have a mode for every sequence"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a finished output of the same name"
    )
    arguments = parser.parse_args(command_line)
    merged = merge_datasets(
        arguments.input, arguments.output_prefix, arguments.multimodal, arguments.overwrite
    )
    print(
        f"{merged.documents:,} documents, {merged.sequences:,} sequences, {merged.tokens:,} "
        f"tokens; wrote {arguments.output_prefix}.bin {arguments.output_prefix}.idx"
    )
    return 0


if __name__ == "__main__":
    run_command_line(main)
