"""What can be said of a sample alone; runs in several processes."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from dongwu_jax.data.jsonl import LineBlock, block_lines, parse_texts
from dongwu_jax.distill.corpus.decontamination import Match, QuestionIndex, read_evaluation_sets
from dongwu_jax.distill.corpus.duplicates import Fingerprint, Fingerprinter
from dongwu_jax.distill.corpus.filters import Fault, Limits, SampleFilter
from dongwu_jax.distill.corpus.originals import Originals, cut_like
from dongwu_jax.distill.corpus.records import Sample, SynthesisInput, parse_sample
from dongwu_jax.errors import UserError

_EXCERPT = 300  # characters


@dataclass(frozen=True)
class Criteria:
    """What decides which samples are kept, and what is written of them.

    Attributes:
        limits: of single samples.
        evaluation_sets: files and folders whose questions no text may hold.
        passage: characters of the passages by which questions are found.
        question_share: of a question in passages of a text that it may not exceed.
        near_duplicates: least Jaccard similarity of near duplicates; 1: they stay.
        originals: the documents, for the filter of copies and the control.
        original_duplicates: whether what is like a whole document is dropped.
        control: whether the true continuations are written.
    """

    limits: Limits = field(default_factory=Limits)
    evaluation_sets: tuple[Path, ...] = ()
    passage: int = 13
    question_share: float = 0.5
    near_duplicates: float = 0.7
    originals: tuple[Path, ...] = ()
    original_duplicates: bool = False
    control: bool = False

    def settings(self) -> dict[str, Any]:
        """For the report, without what depends on where files lie."""
        files = ("evaluation_sets", "originals")
        return asdict(self) | {name: [path.name for path in getattr(self, name)] for name in files}


@dataclass(frozen=True)
class Judged:
    """A sample and what was found.

    Attributes:
        place: file name and line.
        id: of the sample; the place, if the line is no sample.
        source: of the sample.
        excerpt: start of its completion.
        characters: of its text.
        tokens: of its completion.
        trimmed: whether the completion was.
        fault: why it is dropped; None: it is not, or not yet.
        question: that it holds, by name.
        completion, text: fingerprints, of samples without fault.
        line: to write.
        control: of the same document, to write; None: none, or it holds a question.
        control_characters: of its text.
        control_question: that it holds, by name.
    """

    place: str
    id: str
    source: str | None = None
    excerpt: str = ""
    characters: int = 0
    tokens: int = 0
    trimmed: bool = False
    fault: Fault | None = None
    question: str | None = None
    completion: Fingerprint | None = None
    text: Fingerprint | None = None
    line: bytes = b""
    control: bytes | None = None
    control_characters: int = 0
    control_question: str | None = None


@dataclass(frozen=True)
class JudgedBlock:
    """Samples of a block of lines.

    Attributes:
        path: the file.
        file_bytes_read: how much of it was read.
    """

    path: Path
    file_bytes_read: int
    samples: list[Judged]


class Judge:
    """Judges blocks of lines.

    Args:
        text_key: key of the text of the original documents.
        skip_bad_lines: whether they are counted, not errors.
    """

    def __init__(self, criteria: Criteria, source: SynthesisInput, skip_bad_lines: bool) -> None:
        self._criteria = criteria
        self._skip_bad_lines = skip_bad_lines
        self._filter = SampleFilter(criteria.limits)
        self._fingerprint = Fingerprinter(near=criteria.near_duplicates < 1)
        self._questions = open_questions(criteria)
        self._originals = (
            Originals(criteria.originals, source.text_key) if criteria.originals else None
        )

    def __call__(self, block: LineBlock) -> JudgedBlock:
        """All samples of a block.

        Raises:
            UserError: a line is bad and such lines are not skipped, or its document is not there.
        """
        return JudgedBlock(block.path, block.file_bytes_read, list(self._judge_lines(block)))

    def _judge_lines(self, block: LineBlock) -> Iterator[Judged]:
        for number, line in block_lines(block):
            place = f"{block.path.name}:{number}"
            try:
                sample = parse_sample(line, block.path, number)
            except UserError as error:
                if not self._skip_bad_lines:
                    raise UserError(f"{error}. --bad-lines skip goes on without it") from None
                yield Judged(place, place, fault=Fault("bad_line", str(error)))
                continue
            yield self._judge(sample, place)

    def _judge(self, sample: Sample, place: str) -> Judged:
        rest = self._originals.continuation(sample) if self._originals else None
        fault = self._filter.fault(sample, rest)
        match = None if fault else self._match(sample.prefix + sample.completion)
        if match:
            fault = Fault("contaminated", f"{match.share:.0%} of {match.question}")
        text = sample.text
        known: dict[str, Any] = {
            "place": place,
            "id": sample.id,
            "source": sample.source,
            "excerpt": sample.completion[:_EXCERPT],
            "characters": len(text),
            "tokens": sample.tokens,
            "trimmed": sample.is_trimmed,
            "fault": fault,
            "question": match and match.question,
        }
        if fault:
            return Judged(**known)
        if self._criteria.control:
            assert rest is not None
            known |= self._control(sample, rest)
        return Judged(
            **known,
            # Samples of one document share their prefix: what counts is what is new.
            completion=self._fingerprint(sample.completion),
            text=self._fingerprint(text) if self._criteria.original_duplicates else None,
            line=sample.line(),
        )

    def _control(self, sample: Sample, rest: str) -> dict[str, Any]:
        text = sample.prefix + cut_like(rest, len(sample.completion))
        match = self._match(text)
        if match:
            return {"control_question": match.question}
        record = {"id": sample.id, "text": text, "source": sample.source}
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        return {"control": line, "control_characters": len(text)}

    def _match(self, text: str) -> Match | None:
        return self._questions.match(text) if self._questions else None


def open_questions(criteria: Criteria) -> QuestionIndex | None:
    """The questions that no text may hold; None if no evaluation sets are named."""
    if not criteria.evaluation_sets:
        return None
    questions = read_evaluation_sets(criteria.evaluation_sets)
    return QuestionIndex(questions, criteria.passage, criteria.question_share)


class DocumentReader:
    """Makes fingerprints of the original documents of a block, with their places."""

    def __init__(self, text_key: str, near: bool) -> None:
        self._text_key = text_key
        self._fingerprint = Fingerprinter(near)

    def __call__(self, block: LineBlock) -> list[tuple[str, Fingerprint]]:
        """Place and fingerprint of each document.

        Raises:
            UserError: a line is bad.
        """
        return [
            (
                f"{block.path.name}:{number}",
                self._fingerprint(
                    "\n".join(parse_texts(line, [self._text_key], block.path, number)[0])
                ),
            )
            for number, line in block_lines(block)
        ]
