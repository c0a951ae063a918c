"""What two models are compared by: perplexity on texts at several lengths, and FinEval."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.fineval import (
    SUBJECTS,
    as_record,
    fineval_table,
    item_results,
    majority_baseline,
    read_questions,
)
from dongwu_jax.evaluate.harness import check_installed, run_tasks, select_tasks
from dongwu_jax.evaluate.perplexity import measure, plan_tasks
from dongwu_jax.evaluate.perplexity_report import as_record as perplexity_record
from dongwu_jax.evaluate.scoring import Scorer
from dongwu_jax.evaluate.texts import check_text, files_of, read_token_stream
from dongwu_jax.evaluate.windows import Protocol
from dongwu_jax.input_files import read_json_object
from dongwu_jax.interop.sources import open_source
from dongwu_jax.output_files import check_output_file, write_json_file
from dongwu_jax.progress_bars import token_bar

Record = dict[str, Any]


@dataclass(frozen=True)
class Measures:
    """What is measured of a model.

    Attributes:
        data: texts for perplexity, as `read_token_stream` reads them.
        stride: of the protocol "sliding".
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


@dataclass(frozen=True)
class Computation:
    """How a model is to compute.

    Attributes:
        tokenizer: in place of the model's own.
    """

    dtype: str | None
    tokenizer: Path | None


def check(models: list[Path], measures: Measures, kept: list[Path]) -> None:
    """What can be known to fail before anything is measured.

    Raises:
        UserError: a model, text or question cannot be read, or a result not be written.
    """
    if not measures.data and measures.fineval_data is None:
        raise UserError("nothing to compare by: give --data, --fineval-data or both")
    for path in kept:
        check_output_file(path)
    for model in models:
        open_source(model).close()
    for data in measures.data:
        check_text(data)
    if measures.fineval_data is not None:
        check_installed()
        for subject in SUBJECTS:
            read_questions(measures.fineval_data, subject, "dev")
            read_questions(measures.fineval_data, subject, "val")


def measured(
    model: Path,
    measures: Measures,
    computation: Computation,
    kept: Path,
    load: Callable[[], Scorer],
) -> Record:
    """A model's results: those in the file `kept` that still hold, and new ones, kept there.

    Args:
        load: gives the model.

    Raises:
        UserError: something cannot be read, or measured.
    """
    settings = _settings(model, measures, computation)
    record = _read(kept)
    if record.get("settings") != settings:
        record = {"model": str(model), "settings": settings, "perplexity": {}}
    missing = [data for data in measures.data if str(data) not in record["perplexity"]]
    questions = measures.fineval_data is not None and "fineval" not in record
    if not missing and not questions:
        return record
    scorer = load()
    record["dtype"] = scorer.model.dtype
    for data in missing:
        record["perplexity"][str(data)] = _perplexities(scorer, data, measures)
        write_json_file(kept, record)
    if questions:
        record["fineval"] = _fineval(scorer, measures)
        write_json_file(kept, record)
    return record


def _settings(model: Path, measures: Measures, computation: Computation) -> Record:
    """All that the results depend on."""
    found: Record = {
        "model": _fingerprint(model),
        "dtype": computation.dtype,
        "tokenizer": computation.tokenizer and _fingerprint(computation.tokenizer),
    }
    if measures.data:
        found |= {
            "data": {str(data): _fingerprint(data) for data in measures.data},
            "lengths": list(measures.lengths),
            "protocol": measures.protocol,
            "stride": measures.stride if measures.protocol == "sliding" else None,
            "max_tokens": measures.max_tokens,
        }
    if measures.fineval_data is not None:
        found |= {
            "fineval_data": _fingerprint(measures.fineval_data),
            "num_fewshot": measures.num_fewshot,
            "limit": measures.limit,
        }
    return found


def _fingerprint(path: Path) -> str:
    """Changes with the name, size and time of any file of a model, text or folder."""
    files = [
        (str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns)
        for file in files_of(path)
    ]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _perplexities(scorer: Scorer, data: Path, measures: Measures) -> list[Record]:
    tokenizer = scorer.model.tokenizer
    stream = read_token_stream(data, tokenizer, measures.max_tokens)
    tasks = plan_tasks(
        stream, tokenizer, measures.protocol, list(measures.lengths), measures.stride
    )
    records = []
    for task in tasks:
        with token_bar(f"{data.name}, length {task.length}", task.spans.num_scored) as advance:
            records.append(perplexity_record(measure(scorer, stream, task, advance)))
    return records


def _fineval(scorer: Scorer, measures: Measures) -> Record:
    results = run_tasks(
        scorer,
        select_tasks(["fineval"], metadata={"fineval_data": str(measures.fineval_data)}),
        num_fewshot=measures.num_fewshot,
        limit=measures.limit,
    )
    samples = results["samples"]
    return {
        "scores": [as_record(score) for score in fineval_table(samples)],
        "majority": as_record(majority_baseline(samples)),
        "items": [[*item, right] for item, right in item_results(samples).items()],
    }


def _read(path: Path) -> Record:
    """What an earlier comparison left; nothing where it is of no use."""
    try:
        return read_json_object(path)
    except UserError:
        return {}
