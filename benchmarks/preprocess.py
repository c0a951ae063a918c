"""Tokens per second of processor time: preprocessing here, and sentencepiece a line at a time.

Example:
    python benchmarks/preprocess.py --tokenizer-model tokenizer.model --input en.jsonl zh.jsonl

Documents with more than a fifth of Chinese characters are the case "chinese", the others
"english", and where there are both, all of them in their order are "mixed". Ours is the whole job:
reading, encoding in worker processes, writing both files. Theirs is json.loads, encode and tobytes
for each line, without writing. Both load the tokenizer; processor seconds include child processes.

Every text is read once: repeated text repeats its words too, which is easier for us. Less than
5 MB is over too soon to be measured, and is repeated only where --megabytes asks for it; `repeats`
in the output says how often the text was read.
"""

import argparse
import json
import resource
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

_MIN_BYTES = 5_000_000


def main() -> None:
    """Measure every case that the input has and print one line of JSON for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, help="JSON lines with a key `text`")
    parser.add_argument("--tokenizer-model", type=Path, required=True, help="of sentencepiece")
    parser.add_argument("--megabytes", type=float, help="repeat each case to this much JSON")
    parser.add_argument("--workers", type=int, default=1, help="of ours")
    parser.add_argument("--runs", type=int, default=3, help="the median counts")
    arguments = parser.parse_args()
    lines: dict[str, list[bytes]] = {"english": [], "chinese": []}
    mixed = []
    for path, number, line in read_lines(expand_inputs(arguments.input)):
        text = parse_texts(line, ["text"], path, number)[0][0]
        lines["chinese" if _is_chinese(text) else "english"].append(line)
        mixed.append(line)
    if all(lines.values()):
        lines["mixed"] = mixed
    cases = {case: b"\n".join(found) + b"\n" for case, found in lines.items() if found}
    repeats = {case: _repeats(case, len(data), arguments.megabytes) for case, data in cases.items()}
    for case, data in cases.items():
        _measure(case, data, repeats[case], arguments)


def _repeats(case: str, size: int, megabytes: float | None) -> int:
    if megabytes is not None:
        return max(1, round(megabytes * 1e6 / size))
    if size < _MIN_BYTES:
        raise UserError(
            f"--input: {size / 1e6:.1f} MB of {case} text is less than {_MIN_BYTES / 1e6:.0f} MB; "
            "give more text, or repeat it with --megabytes 50"
        )
    return 1


def _is_chinese(text: str) -> bool:
    return sum("\u4e00" <= char <= "\u9fff" for char in text) > len(text) / 5


def _measure(case: str, data: bytes, repeats: int, arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus.jsonl"
        corpus.write_bytes(data * repeats)
        settings = EncodingSettings("GPTSentencePieceTokenizer", arguments.tokenizer_model)
        prefix = Path(name) / "out"

        def ours() -> int:
            return preprocess(
                settings, [corpus], prefix, arguments.workers, True, log_interval=10**12
            ).tokens

        def theirs() -> int:
            return _sentencepiece_loop(corpus, arguments.tokenizer_model)

        speeds = [
            (_tokens_per_second(ours), _tokens_per_second(theirs)) for _ in range(arguments.runs)
        ]
        result = {
            "case": case,
            "megabytes": round(corpus.stat().st_size / 1e6, 1),
            "repeats": repeats,
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
    before = _processor_seconds()
    tokens = job()
    if not tokens:
        raise UserError("the input has no tokens")
    return tokens / (_processor_seconds() - before)


def _processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    run_command_line(main)
