r"""Turn files of JSON lines into Megatron's .bin/.idx datasets.

Example:
    python tools/preprocess_data.py --input corpus/*.jsonl --output-prefix data/corpus \
        --tokenizer-type Llama2Tokenizer --tokenizer-model tokenizer.model --append-eod --workers 16

writes data/corpus_text_document.bin and .idx, byte for byte what Megatron-LM's tool of the same
name writes. Documents keep the order of the input and do not depend on --workers. Started again
after it was killed, it goes on where it stood. .jsonl.gz and .jsonl.zst are read as they are.
"""

import argparse
import os
import sys
from pathlib import Path

from dongwu_jax.command_line import run_command_line
from dongwu_jax.data.document_encoder import EncodingSettings
from dongwu_jax.data.jsonl import expand_inputs
from dongwu_jax.data.preprocess import preprocess
from dongwu_jax.errors import UserError


def main(command_line: list[str] | None = None) -> int:
    """Parse the command line and preprocess."""
    arguments = _parser().parse_args(command_line)
    settings = EncodingSettings(
        tokenizer_type=arguments.tokenizer_type,
        tokenizer_model=arguments.tokenizer_model,
        json_keys=tuple(arguments.json_keys),
        append_eod=arguments.append_eod,
        bos=arguments.bos,
        split_sentences=arguments.split_sentences,
        keep_newlines=arguments.keep_newlines,
    )
    for name in ("workers", "log_interval"):
        if getattr(arguments, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {getattr(arguments, name)}: must be at least 1")
    summary = preprocess(
        settings,
        expand_inputs(arguments.input),
        arguments.output_prefix,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
        skip_bad_lines=arguments.bad_lines == "skip",
        log_interval=arguments.log_interval,
    )
    skipped = f", {summary.bad_lines:,} bad lines skipped" if summary.bad_lines else ""
    print(f"{summary.documents:,} documents, {summary.tokens:,} tokens{skipped}; wrote")
    for prefix in summary.prefixes:
        print(f"  {prefix}.bin {prefix}.idx")
    if not summary.documents:
        print("warning: no line of the input became a document", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    files = parser.add_argument_group("input and output")
    files.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="files, or patterns in quotes"
    )
    files.add_argument(
        "--output-prefix", type=Path, required=True, help="start of the names of the datasets"
    )
    files.add_argument(
        "--json-keys",
        nargs="+",
        default=["text"],
        metavar="KEY",
        help="keys to encode, each into a dataset of its own (default: text)",
    )
    files.add_argument(
        "--overwrite", action="store_true", help="replace finished outputs of the same name"
    )
    files.add_argument(
        "--bad-lines",
        choices=["stop", "skip"],
        default="stop",
        help="what to do at a line that is no JSON object or lacks a key (default: stop)",
    )
    _add_token_flags(parser.add_argument_group("tokens"))
    _add_work_flags(parser.add_argument_group("work"))
    return parser


def _add_token_flags(tokens: "argparse._ArgumentGroup") -> None:
    tokens.add_argument(
        "--tokenizer-type",
        required=True,
        choices=["Llama2Tokenizer", "GPTSentencePieceTokenizer", "HuggingFaceTokenizer"],
        help="Megatron-LM's name of the kind; the first two read SentencePiece models",
    )
    tokens.add_argument(
        "--tokenizer-model",
        type=Path,
        required=True,
        help="SentencePiece .model file, or tokenizer.json of Hugging Face; or a folder with it",
    )
    tokens.add_argument(
        "--append-eod", action="store_true", help="end every document with the end token"
    )
    tokens.add_argument(
        "--bos",
        choices=["none", "document", "sentence"],
        help="where the beginning token is put. Default: Llama2Tokenizer: before every text, as "
        "Megatron-LM did until 2023 (use none for the files of later versions); "
        "GPTSentencePieceTokenizer: none; HuggingFaceTokenizer: as that tokenizer does",
    )
    tokens.add_argument(
        "--split-sentences",
        action="store_true",
        help="one sequence per sentence. Boundaries come from rules for English and Chinese "
        "punctuation and differ from those of NLTK, which Megatron-LM uses",
    )
    tokens.add_argument(
        "--keep-newlines",
        action="store_true",
        help="with --split-sentences: line breaks stay at the end of the sentence before them",
    )


def _add_work_flags(work: "argparse._ArgumentGroup") -> None:
    work.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes that encode (default: one per processor core)",
    )
    work.add_argument(
        "--log-interval",
        type=int,
        default=1000,
        help="documents between two lines of progress (default: 1000; at most a line a second)",
    )
    unused = "accepted for Megatron-LM's command lines; the output does not depend on it"
    work.add_argument("--partitions", type=int, default=1, help=unused)
    work.add_argument("--keep-sequential-samples", action="store_true", help=unused)
    work.add_argument("--lang", default="english", help=unused)


if __name__ == "__main__":
    run_command_line(main)
