"""What synthetic text is worth to a student: equal tokens of three kinds of text, some seeds.

  python tools/build_corpus.py --input synthetic --output corpus --original docs.jsonl --control
  python benchmarks/distill_students.py --student pruned --documents docs.jsonl --corpus corpus \\
      --held-out held_out.jsonl other_domain.txt --tokens 3M --seeds 1 2 --output students

  original   the documents alone
  blend      a third the teacher's continuations (corpus/text.jsonl), two thirds the documents
  control    a third the same prefixes with their true continuations (corpus/control.jsonl), same

Each starts from the same student and sees as many tokens in the same number of steps; a seed is an
order of the data. Prints one JSON line a case as it is done, "before" (the student untrained) among
them, then for each kind the mean over seeds and their standard deviation, and how far blend is from
control and original, seed by seed. Held-out texts must not be among the documents.

Cases run side by side, one on each GPU of CUDA_VISIBLE_DEVICES (0,1,2,3; 0,0,0 for three on one
GPU, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.3). Run again, finished training is not repeated.
"""

import argparse
import concurrent.futures
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure_model import add_measures, measures
from side_by_side import ROOT, on_a_gpu, run, visible_gpus

from dongwu_jax.command_line import number, run_command_line, whole_number
from dongwu_jax.config.durations import Duration
from dongwu_jax.data.indexed_dataset import IndexedDataset
from dongwu_jax.errors import UserError
from dongwu_jax.output_files import check_output_file

KINDS = ("original", "blend", "control")
_SECOND = {"blend": "synthetic", "control": "control"}  # what is mixed with the original text
_CONFIG = ROOT / "configs" / "distill_smollm2.yaml"
Record = dict[str, Any]


@dataclass(frozen=True)
class _Case:
    """One student."""

    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.seed}"


def main(arguments: list[str] | None = None) -> int:
    """Tokenise, train, measure."""
    options = _parse(arguments)
    check_output_file(options.output / "before.json")
    gpus = visible_gpus()
    tokens = _preprocess(options)
    cases = [_Case(kind, seed) for seed in options.seeds for kind in KINDS]
    found: dict[_Case, Record] = {}
    failed = False
    with concurrent.futures.ThreadPoolExecutor(gpus.qsize()) as pool:
        before = pool.submit(on_a_gpu, gpus, _measure, options, options.student, "before")
        students = {pool.submit(on_a_gpu, gpus, _student, options, case): case for case in cases}
        for done in concurrent.futures.as_completed([before, *students]):
            case = students.get(done)
            name = {"case": case.kind, "seed": case.seed} if case else {"case": "before"}
            try:
                figures = done.result()
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                failed = True
                continue
            repeats = {"times_seen": _times_seen(options, case, tokens)} if case else {}
            _say(name | repeats | figures)
            if case:
                found[case] = figures
    for line in summary(found):
        _say(line)
    return int(failed)


def _preprocess(options: argparse.Namespace) -> dict[str, int]:
    """Datasets with the student's tokenizer; the tokens of each."""
    inputs = {
        "original": options.documents,
        "synthetic": [options.corpus / "text.jsonl"],
        "control": [options.corpus / "control.jsonl"],
    }
    for name, files in inputs.items():
        run(
            "",
            options.output / f"preprocess_{name}.log",
            *(ROOT / "tools" / "preprocess_data.py", "--input", *files, "--append-eod"),
            *("--output-prefix", options.output / "data" / name, "--overwrite"),
            *("--tokenizer-type", options.tokenizer_type, "--tokenizer-model", options.student),
        )
    return {name: IndexedDataset(_prefix(options, name)).num_tokens for name in inputs}


def _prefix(options: argparse.Namespace, name: str) -> Path:
    return options.output / "data" / f"{name}_text_document"


def _shares(options: argparse.Namespace, kind: str) -> dict[str, float]:
    """Of each dataset among the tokens of a kind."""
    if kind == "original":
        return {"original": 1.0}
    return {_SECOND[kind]: options.share, "original": 1 - options.share}


def _times_seen(options: argparse.Namespace, case: _Case, tokens: dict[str, int]) -> Record:
    """How often a student sees each dataset."""
    return {
        name: round(share * options.tokens.count / tokens[name], 2)
        for name, share in _shares(options, case.kind).items()
    }


def _student(gpu: str, options: argparse.Namespace, case: _Case) -> Record:
    """Train and measure one."""
    folder = options.output / case.name
    blend = [
        {"prefix": str(_prefix(options, name)), "weight": share}
        for name, share in _shares(options, case.kind).items()
    ]
    settings = (
        f"training.initial_weights={options.student}",
        f"training.duration={options.tokens}",
        f"data.tokenizer={options.student}",
        f"data.blend={json.dumps(blend)}",
        f"data.seed={case.seed}",
        f"data.index_cache={folder / 'index'}",
        f"checkpoint.directory={folder / 'checkpoints'}",
        *options.set,
    )
    log = options.output / f"train_{case.name}.log"
    run(gpu, log, "-m", "dongwu_jax.train", "--config", options.config, *settings)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    figures = _measure(gpu, options, folder / "checkpoints", case.name)
    return figures | {"tokens_per_second": round(statistics.median(speeds))}


def _measure(gpu: str, options: argparse.Namespace, model: Path, name: str) -> Record:
    """Figures of a model, flat."""
    report = options.output / f"{name}.json"
    log = options.output / f"measure_{name}.log"
    tool = ROOT / "benchmarks" / "measure_model.py"
    run(gpu, log, tool, "--model", model, "--json", report, *measures(options))
    record = json.loads(report.read_text())
    figures = {f"perplexity_{t}": r["perplexity"] for t, r in record["perplexity"].items()}
    if "fineval" in record:
        total = record["fineval"]["scores"][-1]
        figures |= {"fineval_correct": total["correct"], "fineval_total": total["total"]}
    for task, metrics in record.get("tasks", {}).items():
        figures |= {
            f"{task}_{metric.partition(',')[0]}": value
            for metric, value in metrics.items()
            if metric.endswith(",none") and not metric.endswith("_stderr,none")
        }
    return figures


def summary(found: dict[_Case, Record]) -> list[Record]:
    """Each kind over its seeds, and blend against the others on the seeds that both have."""
    lines = [
        {"case": kind, "seeds": len(figures)} | _over_seeds(figures)
        for kind in KINDS
        if (figures := [figures for case, figures in found.items() if case.kind == kind])
    ]
    for other in ("control", "original"):
        differences = [
            {
                name: figures[name] - found[_Case(other, case.seed)][name]
                for name in figures
                if name not in ("tokens_per_second", "fineval_total")
            }
            for case, figures in found.items()
            if case.kind == "blend" and _Case(other, case.seed) in found
        ]
        if differences:
            line = {"case": f"blend - {other}", "seeds": len(differences)}
            lines.append(line | _over_seeds(differences))
    return lines


def _over_seeds(figures: list[Record]) -> Record:
    """Mean and, of two or more, standard deviation."""
    line: Record = {}
    for name in figures[0]:
        values = [record[name] for record in figures]
        line[name] = statistics.fmean(values)
        if len(values) > 1:
            line[f"{name}_deviation"] = statistics.stdev(values)
    return line


def _say(record: Record) -> None:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}
    print(json.dumps(rounded), flush=True)


def _share(text: str) -> float:
    share = number(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return share


def _tokens(text: str) -> Duration:
    try:
        return Duration.parse(f"{text} tokens")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of all that is made")
    add("--student", type=Path, required=True, help="model to start from, Hugging Face folder")
    add("--documents", nargs="+", required=True, help="the original text, .jsonl files")
    add("--corpus", type=Path, required=True, help="what tools/build_corpus.py --control wrote")
    add("--tokens", type=_tokens, default="3M", help="each student sees (default 3M)")
    add("--seeds", type=whole_number, nargs="+", default=[1, 2], help="(default 1 2)")
    add("--share", type=_share, default=1 / 3, help="of what is not original (default 1/3)")
    add("--tokenizer-type", default="HuggingFaceTokenizer", help="as preprocess_data.py has it")
    add("--config", type=Path, default=_CONFIG, help="of all runs (default %(default)s)")
    add("--set", nargs="*", default=[], metavar="SECTION.FIELD=VALUE", help="of all runs")
    add_measures(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
