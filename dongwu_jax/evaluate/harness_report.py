"""Results of lm-evaluation-harness as a record for a file and as tables for a person."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from dongwu_jax.evaluate import fineval
from dongwu_jax.evaluate.fineval_report import show_scores

Record = dict[str, Any]
# Of what the harness returns; the rest describes this machine and the tasks.
_KEPT = ("results", "groups", "versions", "n-shot", "n-samples")


def as_record(results: Mapping[str, Any]) -> Record:
    """What is written to a file: scores, and the metrics of every document."""
    record = {name: results[name] for name in _KEPT if name in results}
    record["items"] = {
        task: [
            {"doc_id": sample["doc_id"], "filter": sample["filter"]}
            | {name: sample[name] for name in sample["metrics"]}
            for sample in samples
        ]
        for task, samples in results["samples"].items()
    }
    if _has_fineval(results):
        samples = results["samples"]
        scores = (*fineval.fineval_table(samples), fineval.majority_baseline(samples))
        record["fineval"] = list(map(fineval.as_record, scores))
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
        scores = {"this model": fineval.fineval_table(samples)}
        show_scores(scores, fineval.majority_baseline(samples))


def _has_fineval(results: Mapping[str, Any]) -> bool:
    return any(map(fineval.is_fineval, results["samples"]))
