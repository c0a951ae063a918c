"""From a synthesis to a corpus: judge samples in parallel, then find duplicates in order."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from dongwu_jax.data.jsonl import LineBlock, read_blocks
from dongwu_jax.data.ordered_workers import ordered_map
from dongwu_jax.distill.corpus.duplicates import DuplicateIndex
from dongwu_jax.distill.corpus.filters import Fault
from dongwu_jax.distill.corpus.judging import (
    Criteria,
    DocumentReader,
    Judge,
    Judged,
    JudgedBlock,
    open_questions,
)
from dongwu_jax.distill.corpus.records import SynthesisInput
from dongwu_jax.distill.corpus.report import Outcome
from dongwu_jax.errors import UserError
from dongwu_jax.output_files import check_output_file, replacing, write_json_file
from dongwu_jax.progress_bars import ByteProgress

_TEXT, _CONTROL, _REPORT = "text.jsonl", "control.jsonl", "report.json"
_WORTH_A_PROCESS = 1 << 20  # bytes


@dataclass(frozen=True)
class Building:
    """A job.

    Attributes:
        source: what is read.
        output: folder of text.jsonl, control.jsonl and report.json.
        criteria: what decides.
        workers: processes that judge; the result does not depend on them.
        skip_bad_lines: whether lines that are no samples are counted, not errors.
        overwrite: whether files of an earlier run are replaced.
    """

    source: SynthesisInput
    output: Path
    criteria: Criteria
    workers: int = 1
    skip_bad_lines: bool = False
    overwrite: bool = False


def build_corpus(job: Building) -> Outcome:
    """Write the corpus and its report, and print the table.

    Raises:
        UserError: bad or empty input, an output that is there, or a package that is not.
    """
    _check(job)
    files = job.source.files
    if job.source.missing_parts:
        _say(
            f"warning: the synthesis is not complete, {job.source.missing_parts:,} parts are "
            "missing; tools/synthesize.py goes on with it"
        )
    criteria = job.criteria
    questions = open_questions(criteria)
    seen = DuplicateIndex(criteria.near_duplicates)
    documents = _read_documents(job) if criteria.original_duplicates else None
    outcome = Outcome()
    with replacing(job.output / _TEXT) as text, _control_output(job) as control:
        for judged in _judged(job, files):
            fault = judged.fault or _duplicate(judged, seen, documents)
            if fault:
                outcome.drop(judged, fault)
                continue
            assert judged.completion is not None
            seen.add(judged.completion, judged.id)
            outcome.keep(judged)
            text.write(judged.line)
            if control is not None and judged.control:
                control.write(judged.control)
        if not outcome.read.records:
            raise UserError(
                f"{', '.join(map(str, files))}: holds no sample, so there is no corpus to write; "
                "--input wants what tools/synthesize.py wrote, or JSON lines with texts"
            )
    report: dict[str, Any] = {
        "input": [{"name": path.name, "bytes": path.stat().st_size} for path in files],
        "settings": criteria.settings(),
        **outcome.record(),
    }
    if questions:
        report["questions"] = {
            "searched_for": len(questions.questions),
            "too_short_to_find": questions.too_short,
            "found": sorted(outcome.questions),
        }
    if criteria.control:
        report["control"] = {
            "records": outcome.control.records,
            "characters": outcome.control.characters,
            "contaminated": outcome.control_contaminated,
        }
    write_json_file(job.output / _REPORT, report)
    _print(job, outcome)
    return outcome


def _check(job: Building) -> None:
    """Find mistakes before the work."""
    for flag, wanted in (
        ("control", job.criteria.control),
        ("original-duplicates", job.criteria.original_duplicates),
    ):
        if wanted and not job.criteria.originals:
            raise UserError(
                f"--{flag}: needs --original, the files that were --input of tools/synthesize.py"
            )
    for name in (_TEXT, _CONTROL, _REPORT):
        path = job.output / name
        check_output_file(path)
        if path.exists() and not job.overwrite:
            raise UserError(f"{path}: exists; name another --output, or give --overwrite")


def _duplicate(
    judged: Judged, seen: DuplicateIndex, documents: DuplicateIndex | None
) -> Fault | None:
    assert judged.completion is not None
    if documents is not None:
        assert judged.text is not None
        if name := documents.exact(judged.text):
            return Fault("in_original", f"is {name}")
        if found := documents.near(judged.text):
            return Fault("in_original", f"{found[1]:.0%} like {found[0]}")
    if name := seen.exact(judged.completion):
        return Fault("duplicate", f"is {name}")
    if found := seen.near(judged.completion):
        return Fault("near_duplicate", f"{found[1]:.0%} like {found[0]}")
    return None


def _judged(job: Building, files: Sequence[Path]) -> Iterator[Judged]:
    make_judge = partial(Judge, job.criteria, job.source, job.skip_bad_lines)
    results = ordered_map(make_judge, _blocks(files), _workers(job.workers, files))
    records = 0
    sizes = {path: path.stat().st_size for path in files}
    with (
        contextlib.closing(results),
        ByteProgress("build corpus", sum(sizes.values()), records=0) as progress,
    ):
        done: dict[Path, int] = {}
        for block in results:
            yield from block.samples
            records += len(block.samples)
            done[block.path] = _bytes_done(block, sizes)
            progress.update(sum(done.values()), records=records)


def _bytes_done(block: JudgedBlock, sizes: dict[Path, int]) -> int:
    return min(block.file_bytes_read, sizes[block.path])


def _read_documents(job: Building) -> DuplicateIndex:
    criteria = job.criteria
    index = DuplicateIndex(criteria.near_duplicates)
    make_reader = partial(DocumentReader, job.source.text_key, criteria.near_duplicates < 1)
    workers = _workers(job.workers, criteria.originals)
    _say("reading the original documents")
    with contextlib.closing(
        ordered_map(make_reader, _blocks(criteria.originals), workers)
    ) as results:
        for block in results:
            for name, fingerprint in block:
                index.add(fingerprint, name)
    return index


def _blocks(files: Sequence[Path]) -> Iterator[LineBlock]:
    for path in files:
        yield from read_blocks(path)


def _workers(wanted: int, files: Sequence[Path]) -> int:
    """Processes that are worth their start."""
    size = sum(path.stat().st_size for path in files)
    return min(wanted, 1 + size // _WORTH_A_PROCESS)


@contextlib.contextmanager
def _control_output(job: Building) -> Iterator[BinaryIO | None]:
    path = job.output / _CONTROL
    if job.criteria.control:
        with replacing(path) as file:
            yield file
        return
    yield None
    path.unlink(missing_ok=True)  # of a run that --overwrite replaces: it has other samples


def _print(job: Building, outcome: Outcome) -> None:
    print(outcome.table())
    written = [_TEXT, *([_CONTROL] if job.criteria.control else []), _REPORT]
    print(
        f"{outcome.kept.tokens:,} new tokens, {outcome.trimmed:,} samples trimmed; wrote "
        f"{', '.join(str(job.output / name) for name in written)}"
    )
    if job.criteria.control:
        print(
            f"control: {outcome.control.records:,} samples, {outcome.control.characters:,} "
            f"characters, {outcome.control_contaminated:,} left out for evaluation questions"
        )
    if not outcome.kept.records:
        _say("warning: nothing is kept; report.json has examples of what was dropped")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
