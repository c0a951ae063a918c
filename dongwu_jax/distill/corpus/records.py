"""What a corpus is built from: the parts of a synthesis, or any JSON lines with texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from dongwu_jax.data.jsonl import expand_inputs, parse_object
from dongwu_jax.distill.corpus.text import estimated_tokens, trimmed
from dongwu_jax.distill.synthesis.parts import read_plan
from dongwu_jax.distill.synthesis.templates import CONTINUE, TEMPLATES, training_text
from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json

_STRINGS = ("id", "source", "template", "prefix", "completion", "finish_reason")


@dataclass(frozen=True)
class Sample:
    """A record, its completion trimmed if the generator was cut off.

    Attributes:
        id: of the record, or its file name and line.
        source: file name and line of the document; None: unknown.
        template: how the generator was asked.
        prefix: of the document; empty where the record has a text only.
        completion: what is judged.
        tokens: of the completion; estimated where the record does not say.
        finish_reason: `stop`, `length`, or what else the generator said.
        record: all fields as they were read.
    """

    id: str
    source: str | None
    template: str
    prefix: str
    completion: str
    tokens: int
    finish_reason: str
    record: dict[str, Any]

    @property
    def text(self) -> str:
        """What a student trains on."""
        return training_text(self.template, self.prefix, self.completion)

    @property
    def is_trimmed(self) -> bool:
        """Whether some of the completion was cut off."""
        return len(self.completion) < len(self.record.get("completion", ""))

    def line(self) -> bytes:
        """The record to write, with its line end."""
        record = self.record | {"text": self.text}
        if "completion" in record:
            record |= {"completion": self.completion, "completion_tokens": self.tokens}
        try:
            return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # integers of more than 64 bits
            return json.dumps(record, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True)
class SynthesisInput:
    """What is read.

    Attributes:
        files: of JSON lines, in the order in which they are read.
        text_key: key of the text in the documents behind them.
        missing_parts: of a synthesis that is not complete.
    """

    files: tuple[Path, ...]
    text_key: str = "text"
    missing_parts: int = 0


def find_input(patterns: Sequence[str]) -> SynthesisInput:
    """The parts of the output folder of tools/synthesize.py, or files and patterns.

    Raises:
        UserError: there are no parts, the folder's manifest cannot be read, or a pattern matches
            nothing.
    """
    if len(patterns) != 1 or not Path(patterns[0]).is_dir():
        return SynthesisInput(tuple(expand_inputs(patterns)))
    folder = Path(patterns[0])
    files = tuple(sorted(folder.glob("part-*.jsonl")))
    if not files:
        raise UserError(
            f"{folder}: holds no part-*.jsonl; name the --output folder of tools/synthesize.py, "
            "or .jsonl files"
        )
    manifest, plan = folder / "manifest.json", folder / "parts.json"
    recipe = read_json(manifest) if manifest.exists() else None
    planned = read_plan(plan) if plan.exists() else files
    try:
        text_key = "text" if recipe is None else recipe["recipe"]["text_key"]
    except (KeyError, TypeError):
        raise UserError(
            f"{manifest}: has no recipe.text_key; it is not of tools/synthesize.py"
        ) from None
    return SynthesisInput(files, text_key, max(0, len(planned) - len(files)))


def parse_sample(line: bytes, path: Path, number: int) -> Sample:
    """A sample from a line of a file.

    Raises:
        UserError: naming file and line: no JSON object, a field is missing or of the wrong kind.
    """
    place = f"{path}:{number}"
    record = parse_object(line, f"{path}:{number}")
    for name in _STRINGS:
        if not isinstance(record.get(name, ""), str):
            raise UserError(f"{place}: {name} must be a string, not {str(record[name])[:40]}")
    template = record.get("template", CONTINUE)
    if template not in TEMPLATES:
        raise UserError(f"{place}: template={template}: must be one of {', '.join(TEMPLATES)}")
    if "completion" in record:
        prefix, completion = record.get("prefix", ""), record["completion"]
    else:
        prefix, completion = "", record.get("text")
        template = CONTINUE  # of which nothing is known: the text is taken as it is
    if not isinstance(completion, str):
        present = ", ".join(list(record)[:10]) or "none"
        raise UserError(f"{place}: has no completion and no text (its keys: {present})")
    tokens = record.get("completion_tokens", estimated_tokens(completion))
    if not isinstance(tokens, int):
        raise UserError(f"{place}: completion_tokens={tokens}: must be a whole number")
    finish_reason = record.get("finish_reason", "stop")
    whole = trimmed(completion) if finish_reason == "length" else completion
    return Sample(
        id=record.get("id", f"{path.name}:{number}"),
        source=record.get("source"),
        template=template,
        prefix=prefix,
        completion=whole,
        tokens=round(tokens * len(whole) / max(1, len(completion))),
        finish_reason=finish_reason,
        record=record,
    )
