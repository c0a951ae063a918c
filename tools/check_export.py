"""Load an exported Hugging Face folder with transformers and compare it with our own reading.

Example:
    python tools/check_export.py --model quickstart/hf
"""

import argparse
from pathlib import Path

from dongwu_jax.command_line import number, run_command_line
from dongwu_jax.errors import UserError
from dongwu_jax.interop.export_check import check_export


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, compare, and say by how much they differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="the exported folder")
    parser.add_argument(
        "--tolerance",
        type=number,
        default=1e-3,
        help="largest difference of a logit that passes (default 0.001)",
    )
    options = parser.parse_args(arguments)
    result = check_export(options.model)
    print(
        f"{options.model}: transformers' float32 logits differ from ours by at most "
        f"{result.largest_difference:.1e} (largest logit {result.largest_logit:.1f}, "
        f"{result.tokens} tokens); its tokenizer agrees on {result.texts_tokenised_alike} of "
        f"{result.texts} texts"
    )
    if result.largest_difference > options.tolerance:
        raise UserError(f"{options.model}: the difference is above {options.tolerance}")
    if result.texts_tokenised_alike < result.texts:
        raise UserError(f"{options.model}: transformers tokenises some text differently")
    return 0


if __name__ == "__main__":
    run_command_line(main)
