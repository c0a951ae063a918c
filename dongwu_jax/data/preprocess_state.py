"""Where a preprocessing run stands, kept beside its output so that a killed run goes on."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dongwu_jax.data.document_encoder import PreprocessSettings
from dongwu_jax.data.indexed_dataset_writer import WriterPosition
from dongwu_jax.errors import UserError
from dongwu_jax.output_files import write_output_file
from dongwu_jax.sealed_json import read_sealed_json, sealed

_FORMAT = 2


@dataclass(frozen=True)
class PreprocessState:
    """Everything before this point is on disk.

    Attributes:
        file: number of the input file to go on with.
        offset: in that file, in decompressed bytes, the start of a line.
        line: number of that line, from 1.
        bad_lines: lines that were skipped so far.
        written: position of the writer of each key.
    """

    file: int
    offset: int
    line: int
    bad_lines: int
    written: list[WriterPosition]


def run_identity(settings: PreprocessSettings, inputs: Sequence[Path]) -> dict[str, Any]:
    """What must be the same for a run to be continued: settings, tokenizer and inputs."""
    files = [(str(path), path.stat()) for path in inputs]
    tokenizer = hashlib.sha256()
    for path in settings.tokenizer_sources:
        tokenizer.update(path.read_bytes())
    identity = dataclasses.asdict(settings) | {  # type: ignore[call-overload]
        "tokenizer_model": tokenizer.hexdigest(),
        "inputs": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files],
    }
    return json.loads(json.dumps(identity))


def state_path(output_prefix: Path) -> Path:
    """The file of the state of a run."""
    return Path(f"{output_prefix}.state.partial")


def save_state(path: Path, identity: dict[str, Any], state: PreprocessState) -> None:
    """Replace the state file in one step.

    Raises:
        UserError: it cannot be written, e.g. because the disk is full.
    """
    content = {"format": _FORMAT, "identity": identity, "state": dataclasses.asdict(state)}
    write_output_file(path, json.dumps(sealed(content)).encode())


def load_state(path: Path, identity: dict[str, Any]) -> PreprocessState | None:
    """The state of an earlier run of the same identity, or None; a damaged one counts as none."""
    try:
        content = read_sealed_json(path)
    except UserError:
        return None
    if content.get("format") != _FORMAT or content["identity"] != identity:
        return None
    state = content["state"]
    state["written"] = [WriterPosition(*position) for position in state["written"]]
    return PreprocessState(**state)
