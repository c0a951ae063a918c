"""Keep the documents that are longer than a context window; chapters become whole statutes first.

A longer window learns nothing from documents that end before it does.

Example:
    python3 examples/finance_llm/long_documents.py --input train.jsonl --tokenizer smollm2 \\
        --min-tokens 8192 --output long.jsonl
"""

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from statutes import law_of

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.data.jsonl import expand_inputs, parse_texts, read_lines
from dongwu_jax.data.tokenizers import load_tokenizer
from dongwu_jax.errors import UserError
from dongwu_jax.output_files import check_output_file, write_output_file


def main(arguments: list[str] | None = None) -> int:
    """Join, count, write."""
    options = _parse(arguments)
    check_output_file(options.output)
    tokenizer = load_tokenizer(options.tokenizer)
    kept, tokens, documents = [], 0, 0
    for text in joined_statutes(_texts(options.input)):
        documents += 1
        length = len(tokenizer.encode(text))
        if length >= options.min_tokens:
            kept.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            tokens += length
    if not kept:
        raise UserError(
            f"{options.input[0]}: no document has {options.min_tokens} tokens; give longer ones, "
            "or a smaller --min-tokens"
        )
    write_output_file(options.output, "".join(kept).encode(errors="replace"))
    print(
        f"{options.output}: {len(kept):,} of {documents:,} documents have at least "
        f"{options.min_tokens:,} tokens, {tokens:,} in all"
    )
    return 0


def joined_statutes(texts: Iterable[str]) -> Iterator[str]:
    """Neighbouring chapters of one law as one text; all others as they are."""
    for law, chapters in itertools.groupby(texts, law_of):
        if law is None:
            yield from chapters
        else:
            yield "\n".join(chapters)


def _texts(inputs: list[str]) -> Iterator[str]:
    for path, number, line in read_lines(expand_inputs(inputs)):
        yield parse_texts(line, ["text"], path, number)[0][0]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help=".jsonl (key: text)")
    add("--output", type=Path, required=True, help=".jsonl to write")
    add("--tokenizer", type=Path, required=True, help="folder or file, counts the tokens")
    add("--min-tokens", type=positive_int, default=8192, help="of a document (default 8192)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
