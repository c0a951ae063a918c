"""What two models are compared by: perplexity on texts at several lengths, and FinEval."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.fineval import fineval_table, item_results, majority_baseline
from dongwu_jax.evaluate.harness import run_tasks
from dongwu_jax.evaluate.perplexity import measure, plan_tasks
from dongwu_jax.evaluate.perplexity_report import as_record
from dongwu_jax.evaluate.progress import token_bar
from dongwu_jax.evaluate.scoring import Scorer
from dongwu_jax.evaluate.texts import read_token_stream
from dongwu_jax.evaluate.windows import Protocol
from dongwu_jax.output_files import write_output_file

Record = dict[str, Any]


@dataclass(frozen=True)
class Measures:
    """What is measured of a model.

    Attributes:
        data: texts for perplexity, as `read_token_stream` reads them.
        fineval_data: folder with FinEval's dev/ and val/; None: not measured.
        num_fewshot: examples in a prompt of FinEval.
        limit: only so many questions of each subject; None: all.
    """

    data: tuple[Path, ...]
    lengths: tuple[int, ...]
    protocol: Protocol
    stride: int
    max_tokens: int | None
    fineval_data: Path | None
    num_fewshot: int
    limit: int | None

    def __post_init__(self) -> None:
        if not self.data and self.fineval_data is None:
            raise UserError("nothing to compare by: give --data, --fineval-data or both")


def measured(
    model: Path, measures: Measures, dtype: str | None, kept: Path, load: Callable[[], Scorer]
) -> Record:
    """A model's results: those in the file `kept` if it has them, else new ones, kept there.

    Args:
        dtype: of the computation, as the user asked for it.
        load: gives the model.

    Raises:
        UserError: something cannot be read, or measured.
    """
    settings = json.loads(json.dumps(asdict(measures), default=str))
    about = {"model": str(model.resolve()), "changed": _changed(model), "asked_dtype": dtype}
    about |= {"settings": settings}
    known = _read(kept)
    if known is not None and all(known.get(name) == value for name, value in about.items()):
        return known
    scorer = load()
    texts = [_perplexities(scorer, data, measures) for data in measures.data]
    record = about | {
        "dtype": scorer.model.dtype,
        "perplexity": [result for results in texts for result in results],
        "fineval": None if measures.fineval_data is None else _fineval(scorer, measures),
    }
    write_output_file(kept, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    return record


def _perplexities(scorer: Scorer, data: Path, measures: Measures) -> list[Record]:
    tokenizer = scorer.model.tokenizer
    stream = read_token_stream(data, tokenizer, measures.max_tokens)
    tasks = plan_tasks(
        stream, tokenizer, measures.protocol, list(measures.lengths), measures.stride
    )
    records = []
    for task in tasks:
        with token_bar(f"{data.name}, length {task.length}", task.spans.num_scored) as advance:
            result = as_record(measure(scorer, stream, task, advance))
        records.append({"data": str(data)} | result)
    return records


def _fineval(scorer: Scorer, measures: Measures) -> Record:
    results = run_tasks(
        scorer,
        ["fineval"],
        num_fewshot=measures.num_fewshot,
        limit=measures.limit,
        metadata={"fineval_data": str(measures.fineval_data)},
    )
    samples = results["samples"]
    return {
        "scores": [asdict(score) for score in fineval_table(samples)],
        "majority": asdict(majority_baseline(samples)),
        "items": [[*item, right] for item, right in item_results(samples).items()],
    }


def _changed(model: Path) -> float:
    """When the newest of a model's files was written."""
    files = [path for path in model.rglob("*") if path.is_file()] if model.is_dir() else [model]
    return max((path.stat().st_mtime for path in files if path.is_file()), default=0.0)


def _read(path: Path) -> Record | None:
    """What an earlier comparison left, or None where there is nothing of use."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
