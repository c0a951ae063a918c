"""Make a training corpus of synthetic text: filter, remove duplicates and evaluation questions.

Examples:
  python tools/build_corpus.py --input synthetic/ --output corpus/ --decontaminate FinEval/v2
  python tools/build_corpus.py --input synthetic/ --output corpus/ --decontaminate FinEval/v2 \\
      --original 'documents/*.jsonl' --control

writes corpus/text.jsonl (which tools/preprocess_data.py reads), corpus/report.json with what was
dropped and up to 20 examples for each reason, and with --control corpus/control.jsonl: the same
prefixes with their true continuations, to tell distillation from more data. The same input gives
the same bytes. Near duplicates need datasketch (pip install 'dongwu_jax[distill]').
"""

import argparse
import os
from pathlib import Path

from dongwu_jax.command_line import number, positive_int, run_command_line, whole_number
from dongwu_jax.input_files import read_text


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and build."""
    options = _parse(arguments)
    from dongwu_jax.data.jsonl import expand_inputs
    from dongwu_jax.distill.corpus.filters import PHRASES, Limits
    from dongwu_jax.distill.corpus.job import Building, build_corpus
    from dongwu_jax.distill.corpus.judging import Criteria
    from dongwu_jax.distill.corpus.records import find_input

    limits = Limits(
        options.min_new_tokens,
        options.max_replacement_characters,
        options.max_language_difference,
        options.max_repeated_passages,
        options.max_compression,
        options.max_repeated_lines,
        options.max_copied,
        (*PHRASES, *_read_phrases(options.phrases)),
    )
    criteria = Criteria(
        limits,
        tuple(options.decontaminate),
        options.passage,
        options.question_share,
        options.near_duplicates,
        tuple(expand_inputs(options.original)),
        options.original_duplicates,
        options.control,
    )
    build_corpus(
        Building(
            find_input(options.input),
            options.output,
            criteria,
            options.workers,
            options.bad_lines == "skip",
            options.overwrite,
        )
    )
    return 0


def _read_phrases(path: Path | None) -> list[str]:
    if path is None:
        return []
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _share(text: str) -> float:
    value = number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text}: must be from 0 to 1")
    return value


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_file_flags(parser.add_argument_group("input and output"))
    _add_filter_flags(
        parser.add_argument_group(
            "filters of single samples, in this order", "a share of 1 turns a filter off"
        )
    )
    _add_set_flags(parser.add_argument_group("evaluation questions and duplicates"))
    return parser.parse_args(arguments)


def _add_file_flags(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="output folder of tools/synthesize.py, or .jsonl (.gz, .zst) files and patterns",
    )
    add("--output", type=Path, required=True, help="folder to write")
    add(
        "--original",
        nargs="+",
        default=[],
        metavar="FILE",
        help="the documents: all files that were --input of tools/synthesize.py. Samples that copy "
        "how their document goes on are dropped then",
    )
    add(
        "--control",
        action="store_true",
        help="also write the prefixes of the kept samples with their true continuations, cut to "
        "about the same number of characters; needs --original",
    )
    add(
        "--bad-lines",
        choices=["stop", "skip"],
        default="stop",
        help="what to do at a line that is no sample (default: stop)",
    )
    add(
        "--workers",
        type=positive_int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes; the result does not depend on them (default: one per processor core)",
    )
    add("--overwrite", action="store_true", help="replace the files of an earlier run")


def _add_filter_flags(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--min-new-tokens",
        type=whole_number,
        default=64,
        metavar="N",
        help="least length of a completion in tokens of the generator, after its broken last "
        "sentence is cut off (default 64)",
    )
    add(
        "--max-replacement-characters",
        type=whole_number,
        default=0,
        metavar="N",
        help="U+FFFD, which stands for broken bytes, in a completion (default 0)",
    )
    add(
        "--phrases",
        type=Path,
        metavar="FILE",
        help="phrases, one a line, that no completion may have, besides the usual refusals and "
        "remains of chats in Chinese and English",
    )
    add(
        "--max-language-difference",
        type=_share,
        default=0.3,
        metavar="SHARE",
        help="between the shares of Chinese letters in prefix and completion (default 0.3; 1 when "
        "the generator was asked to translate)",
    )
    add(
        "--max-repeated-passages",
        type=_share,
        default=0.4,
        metavar="SHARE",
        help="of the characters, inside passages of 20 characters that came before (default 0.4)",
    )
    add(
        "--max-compression",
        type=number,
        default=5.0,
        metavar="TIMES",
        help="how many times smaller zlib may make a completion (default 5)",
    )
    add(
        "--max-repeated-lines",
        type=_share,
        default=0.3,
        metavar="SHARE",
        help="of the lines, those that came before (default 0.3)",
    )
    add(
        "--max-copied",
        type=_share,
        default=0.8,
        metavar="SHARE",
        help="of a completion, in one passage of the true continuation (needs --original), or of "
        "the passage that was to be rewritten (default 0.8)",
    )


def _add_set_flags(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--decontaminate",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="evaluation sets: folders with FinEval's dev, val and test, or .csv, .jsonl (key "
        "question or text), or .txt files of a question a line",
    )
    add(
        "--passage",
        type=positive_int,
        default=13,
        metavar="N",
        help="characters of the passages by which questions are found, without spaces and "
        "punctuation (default 13)",
    )
    add(
        "--question-share",
        type=_share,
        default=0.5,
        metavar="SHARE",
        help="of a question in passages that a text has too, above which it is found (default 0.5)",
    )
    add(
        "--near-duplicates",
        type=_share,
        default=0.7,
        metavar="SHARE",
        help="least Jaccard similarity, of passages of 5 characters, of completions of which one "
        "is dropped (default 0.7; 1 keeps near duplicates)",
    )
    add(
        "--original-duplicates",
        action="store_true",
        help="also drop texts that are like a whole document of --original",
    )


if __name__ == "__main__":
    run_command_line(main)
