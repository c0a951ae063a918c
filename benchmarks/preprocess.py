"""Tokens per second of processor time: preprocessing here, and sentencepiece a line at a time.

Example:
    python benchmarks/preprocess.py --tokenizer-model tokenizer.model --input en.jsonl zh.jsonl

Documents with more than a fifth of Chinese characters are the case "chinese", the others
"english", all of them in their order "mixed". Ours is the whole job: reading, encoding in worker
processes, writing both files. Theirs is json.loads, encode and tobytes for each line, without
writing. Processor seconds include child processes. Both see the same text in turn, several times.
Text that is repeated to reach --megabytes repeats its words too: give enough of it.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece

from dongwu_jax.command_line import run_command_line
from dongwu_jax.data.document_encoder import EncodingSettings
from dongwu_jax.data.indexed_dataset import token_dtype
from dongwu_jax.data.jsonl import expand_inputs, parse_texts, read_lines
from dongwu_jax.data.preprocess import preprocess
from dongwu_jax.errors import UserError


def main() -> None:
    """Measure every case that the input has and print one line of JSON for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, help="JSON lines with a key `text`")
    parser.add_argument("--tokenizer-model", type=Path, required=True, help="of sentencepiece")
    parser.add_argument("--megabytes", type=float, default=50, help="of JSON per case")
    parser.add_argument("--workers", type=int, default=1, help="of ours")
    parser.add_argument("--repeats", type=int, default=3, help="the median counts")
    arguments = parser.parse_args()
    lines: dict[str, list[bytes]] = {"english": [], "chinese": [], "mixed": []}
    for path, number, line in read_lines(expand_inputs(arguments.input)):
        text = parse_texts(line, ["text"], path, number)[0][0]
        lines["chinese" if _is_chinese(text) else "english"].append(line)
        lines["mixed"].append(line)
    for case, case_lines in lines.items():
        if case_lines:
            _measure(case, case_lines, arguments)


def _is_chinese(text: str) -> bool:
    return sum("\u4e00" <= char <= "\u9fff" for char in text) > len(text) / 5


def _measure(case: str, lines: list[bytes], arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus.jsonl"
        size = sum(len(line) + 1 for line in lines)
        repetitions = max(1, round(arguments.megabytes * 1e6 / size))
        corpus.write_bytes(b"".join(line + b"\n" for line in lines) * repetitions)
        settings = EncodingSettings("GPTSentencePieceTokenizer", arguments.tokenizer_model)
        prefix = Path(name) / "out"

        def ours() -> int:
            return preprocess(
                settings, [corpus], prefix, arguments.workers, True, log_interval=10**12
            ).tokens

        def theirs() -> int:
            return _sentencepiece_loop(corpus, arguments.tokenizer_model)

        speeds = [
            (_tokens_per_second(ours), _tokens_per_second(theirs)) for _ in range(arguments.repeats)
        ]
        result = {
            "case": case,
            "megabytes": round(corpus.stat().st_size / 1e6, 1),
            "repetitions_of_text": repetitions,
            "ours_tokens_per_cpu_second": round(statistics.median(our for our, _ in speeds)),
            "theirs_tokens_per_cpu_second": round(statistics.median(their for _, their in speeds)),
            "ratio": round(statistics.median(our / their for our, their in speeds), 2),
        }
        print(json.dumps(result), flush=True)


def _sentencepiece_loop(corpus: Path, model: Path) -> int:
    """The number of tokens of a corpus, encoded the straightforward way."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    dtype = token_dtype(processor.get_piece_size())
    size = 0
    with corpus.open("rb") as file:
        for line in file:
            size += len(np.array(processor.encode(json.loads(line)["text"]), dtype).tobytes())
    return size // dtype.itemsize


def _tokens_per_second(job: Callable[[], int]) -> float:
    before = sum(os.times()[:4])
    tokens = job()
    if not tokens:
        raise UserError("the input has no tokens")
    return tokens / (sum(os.times()[:4]) - before)


if __name__ == "__main__":
    run_command_line(main)
