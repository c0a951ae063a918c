"""What a job's output folder says about it: the plan, which may not change, and its runs."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dongwu_jax
from dongwu_jax.data.fingerprint import hash_of_files
from dongwu_jax.distill.synthesis.parts import source_names
from dongwu_jax.distill.synthesis.recipe import Recipe
from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object
from dongwu_jax.output_files import write_json_file

_FORMAT = 1
_MANIFEST = "manifest.json"
_RUNS = "runs.jsonl"


def describe(recipe: Recipe, model: str, tokenizer: Path, inputs: Sequence[Path]) -> dict[str, Any]:
    """Everything that decides a job's samples, in words and fingerprints.

    Args:
        model: folder of the model, or the name under which a server serves it.
        tokenizer: its file.
        inputs: files of documents.

    Raises:
        UserError: a file cannot be read.
    """
    described = {
        "format": _FORMAT,
        "recipe": asdict(recipe),
        "model": {"name": model, "files": _model_files(Path(model))},
        "tokenizer": hash_of_files([tokenizer]),
        "inputs": [
            {"name": name, "bytes": path.stat().st_size, "content": hash_of_files([path])}
            for path, name in source_names(inputs).items()
        ],
    }
    return json.loads(json.dumps(described))  # as it is read back


def open_folder(folder: Path, described: dict[str, Any]) -> None:
    """Write the manifest of a new job, or check that the existing folder is of the same one.

    Raises:
        UserError: it is another job's, or holds other files, or cannot be written.
    """
    path = folder / _MANIFEST
    others = any(entry.name[0] != "." for entry in folder.iterdir())
    if not path.exists():  # looked for last: another rank may have begun meanwhile
        if others:
            raise UserError(f"{folder}: holds other files; name a new folder with --output")
        write_json_file(path, described | {"dongwu_jax": dongwu_jax.__version__})
        return
    differences = list(_differences(read_json_object(path), described))
    if differences:
        raise UserError(
            f"{path}: the samples there were made with other settings: {'; '.join(differences)}. "
            "Give those again to go on, or name a new folder with --output"
        )


@contextmanager
def locked(folder: Path, rank: int) -> Iterator[None]:
    """Hold the folder against a second process of the same rank.

    Raises:
        UserError: there is one, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f".lock-{rank}").open("ab")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process works on it as rank {rank}; let it end, or give each "
                "process its own --rank"
            ) from None
        yield


def note_run(folder: Path, event: str, **details: Any) -> None:
    """Add a line to the folder's list of runs: what ran where, with which engine, how fast."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"event": event, "time": time, "host": socket.gethostname(), "process": os.getpid()}
    with (folder / _RUNS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line | details, ensure_ascii=False, default=str) + "\n")


def _differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    """Each value that `now` has otherwise than `there`."""
    if isinstance(there, dict) and isinstance(now, dict):
        for key in now:
            yield from _differences(there.get(key), now[key], f"{name}.{key}" if name else key)
    elif there != now:
        yield f"{name} is {json.dumps(there, ensure_ascii=False)} there and " + (
            f"{json.dumps(now, ensure_ascii=False)} now"
        )


def _model_files(model: Path) -> dict[str, str] | None:
    """Fingerprints of the files that decide what a model says; None for a server's model."""
    if not model.is_dir():
        return None
    files = sorted(path for path in model.iterdir() if path.suffix in (".json", ".safetensors"))
    return {path.name: hash_of_files([path]) for path in files}
