"""Results of lm-evaluation-harness as a record for a file and as tables for a person."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console

from dongwu_jax.evaluate.fineval import TASK_PREFIX, fineval_table, majority_baseline
from dongwu_jax.evaluate.fineval_report import show_scores

Record = dict[str, Any]
# Of what the harness returns; the rest describes this machine and the tasks.
_KEPT = ("results", "groups", "versions", "n-shot", "n-samples")


def as_record(results: Mapping[str, Any]) -> Record:
    """What is written to a file: scores, and the metrics of every document."""
    record = {name: results[name] for name in _KEPT if name in results}
    record["items"] = {
        task: [
            {"doc_id": sample["doc_id"]} | {name: sample[name] for name in sample["metrics"]}
            for sample in samples
        ]
        for task, samples in results["samples"].items()
    }
    if _has_fineval(results):
        record["fineval"] = [asdict(score) for score in fineval_table(results["samples"])]
    return record


def show(results: Mapping[str, Any]) -> None:
    """The harness's own tables, and FinEval's by category."""
    from lm_eval.utils import make_table

    console = Console()
    console.print(make_table(results), highlight=False, soft_wrap=True)
    if results.get("groups"):
        console.print(make_table(results, "groups"), highlight=False, soft_wrap=True)
    if _has_fineval(results):
        samples = results["samples"]
        show_scores({"this model": fineval_table(samples)}, majority_baseline(samples))


def _has_fineval(results: Mapping[str, Any]) -> bool:
    return any(task.startswith(TASK_PREFIX) for task in results["samples"])
