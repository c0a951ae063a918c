r"""Train a SentencePiece BPE tokenizer of Llama-2's kind on files of JSON lines.

Example:
    python tools/train_tokenizer.py --input corpus/*.jsonl --vocab-size 32000 \
        --output tokenizer.model
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from dongwu_jax.command_line import run_command_line
from dongwu_jax.data.jsonl import block_lines, expand_inputs, parse_texts, read_blocks
from dongwu_jax.data.tokenizer_training import train_sentencepiece
from dongwu_jax.errors import UserError
from dongwu_jax.progress_bars import ByteProgress


def main(command_line: list[str] | None = None) -> int:
    """Parse the command line and train."""
    arguments = _parser().parse_args(command_line)
    for name in ("vocab_size", "max_characters"):
        if getattr(arguments, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {getattr(arguments, name)}: must be at least 1")
    if arguments.output.is_file() and not arguments.overwrite:
        raise UserError(f"{arguments.output}: exists already; add --overwrite to replace it")
    files = expand_inputs(arguments.input)
    train_sentencepiece(
        _texts(files, arguments.json_keys),
        arguments.output,
        arguments.vocab_size,
        arguments.max_characters,
        arguments.seed,
    )
    print(f"wrote {arguments.output} with {arguments.vocab_size} pieces")
    return 0


def _texts(files: Sequence[Path], keys: Sequence[str]) -> Iterator[str]:
    """All texts of the files, with progress."""
    total = sum(path.stat().st_size for path in files)
    with ByteProgress("read", total, documents=0) as progress:
        before = documents = 0
        for path in files:
            for block in read_blocks(path):
                for number, line in block_lines(block):
                    documents += 1
                    for texts in parse_texts(line, keys, path, number):
                        yield from texts
                progress.update(before + block.file_bytes_read, documents=documents)
            before += path.stat().st_size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="files, or patterns in quotes"
    )
    parser.add_argument(
        "--json-keys",
        nargs="+",
        default=["text"],
        metavar="KEY",
        help="keys to read (default text)",
    )
    parser.add_argument("--vocab-size", type=int, required=True, help="pieces, bytes included")
    parser.add_argument("--output", type=Path, required=True, help="the .model file to write")
    parser.add_argument(
        "--max-characters",
        type=int,
        default=100_000_000,
        help="train on a uniform sample of this size (default: 100,000,000)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an output of the same name"
    )
    return parser


if __name__ == "__main__":
    run_command_line(main)
