"""Measure a model in one process: perplexity of texts, FinEval, and other tasks of the harness.

  python benchmarks/measure_model.py --model export --held-out held_out.jsonl --json figures.json

What tools/evaluate.py does in several commands, for benchmarks that measure many models.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dongwu_jax.command_line import positive_int, run_command_line, whole_number
from dongwu_jax.output_files import check_output_file, write_json_file

if TYPE_CHECKING:
    from dongwu_jax.evaluate.scoring import Scorer

Record = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the file."""
    options = _parse(arguments)
    import jax

    from dongwu_jax.evaluate.scoring import Scorer
    from dongwu_jax.interop.loaded_model import load_model

    check_output_file(options.json)
    scorer = Scorer(load_model(options.model, devices=jax.local_devices()))
    record: Record = {"model": str(options.model), "dtype": scorer.model.dtype}
    record["perplexity"] = {
        text.stem: _perplexity(scorer, text, options) for text in options.held_out
    }
    if options.fineval_data is not None:
        record["fineval"] = _fineval(scorer, options)
    if options.tasks:
        record["tasks"] = _tasks(scorer, options)
    write_json_file(options.json, record)


def _perplexity(scorer: "Scorer", text: Path, options: argparse.Namespace) -> Record:
    from dongwu_jax.evaluate.perplexity import measure, plan_tasks
    from dongwu_jax.evaluate.perplexity_report import as_record
    from dongwu_jax.evaluate.texts import read_token_stream

    tokenizer = scorer.model.tokenizer
    stream = read_token_stream(text, tokenizer, options.max_tokens)
    (task,) = plan_tasks(stream, tokenizer, "chunked", [options.length], 1)
    return as_record(measure(scorer, stream, task))


def _fineval(scorer: "Scorer", options: argparse.Namespace) -> Record:
    """Scores by category, and whether each question is answered rightly."""
    from dongwu_jax.evaluate import fineval
    from dongwu_jax.evaluate.harness import run_tasks, select_tasks

    tasks = select_tasks(["fineval"], metadata={"fineval_data": str(options.fineval_data)})
    samples = run_tasks(scorer, tasks, num_fewshot=options.num_fewshot, limit=options.limit)[
        "samples"
    ]
    return {
        "scores": [fineval.as_record(score) for score in fineval.fineval_table(samples)],
        "majority": fineval.as_record(fineval.majority_baseline(samples)),
        "items": [[*item, right] for item, right in fineval.item_results(samples).items()],
    }


def _tasks(scorer: "Scorer", options: argparse.Namespace) -> Record:
    """The harness's metrics of each task."""
    from dongwu_jax.evaluate.harness import run_tasks, select_tasks

    tasks = select_tasks(options.tasks, include_path=options.include_path)
    results = run_tasks(scorer, tasks, limit=options.limit)
    return {task: dict(results["results"][task]) for task in options.tasks}


def add_measures(parser: argparse.ArgumentParser) -> None:
    """The options that say what is measured; those of `measures` again."""
    add = parser.add_argument
    add("--held-out", type=Path, nargs="+", required=True, help="texts whose perplexity is taken")
    add("--length", type=positive_int, default=1024, help="tokens of a window (default 1024)")
    add("--max-tokens", type=positive_int, default=262_144, help="of each text (default 262144)")
    add("--fineval-data", type=Path, metavar="FOLDER", help="FinEval's, with dev/ and val/")
    add("--num-fewshot", type=whole_number, default=5, help="examples of FinEval (default 5)")
    add("--tasks", nargs="+", default=[], help="other tasks of the harness")
    add("--include-path", type=Path, metavar="FOLDER", help="YAML files of your own tasks")
    add("--limit", type=positive_int, metavar="N", help="documents of each task")


def measures(options: argparse.Namespace) -> list[str]:
    """The options of `add_measures` as a command line."""
    words = ["--held-out", *options.held_out, "--length", options.length]
    words += ["--max-tokens", options.max_tokens, "--num-fewshot", options.num_fewshot]
    if options.fineval_data is not None:
        words += ["--fineval-data", options.fineval_data]
    if options.tasks:
        words += ["--tasks", *options.tasks]
    if options.include_path is not None:
        words += ["--include-path", options.include_path]
    if options.limit is not None:
        words += ["--limit", options.limit]
    return [str(word) for word in words]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="any that evaluate.py reads")
    parser.add_argument("--json", type=Path, required=True, help="file of the figures")
    add_measures(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
