"""What a teacher holds likeliest after each token of a run's samples, on disk.

A folder, for the samples of a run in their order, numbered from 0:

- `teacher.json`: the header below. It appears when all parts are complete; until then it is called
  `teacher.incomplete.json`.
- `ids-00000.npy`, ...: the k likeliest tokens of each position, likeliest first;
  [samples of the part, length, k], uint16 where the vocabulary has at most 65,536 tokens, else
  uint32.
- `log_probabilities-00000.npy`, ...: float16 [samples of the part, length, k + 1]; natural
  logarithms, those of the tokens, then that of all other tokens together (the tail).

All files are NumPy's own format, version 1. All parts hold `samples_per_part` samples, but the last
what is left. Bytes a token: k x (2 or 4) + (k + 1) x 2, that is 258 for k = 64 and a small
vocabulary: 2.6 TB for 10 billion tokens.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from dongwu_jax.config import RunConfig
from dongwu_jax.data.fingerprint import Fingerprint, compare_fingerprints
from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object
from dongwu_jax.output_files import write_json_file

IDS, LOG_PROBABILITIES = "teacher_ids", "teacher_log_probabilities"
_FILES = {IDS: "ids", LOG_PROBABILITIES: "log_probabilities"}
_HEADER, _UNFINISHED = "teacher.json", "teacher.incomplete.json"
_VERSION = 1
# What NumPy raises for damaged headers.
_UNREADABLE = (OSError, ValueError, EOFError, TypeError, OverflowError, SyntaxError, TokenError)
_ROUNDING = 0.02  # to 16 bits, of probabilities that add up to 1

Entries = dict[str, np.ndarray]


@dataclass(frozen=True)
class CacheHeader:
    """What a cache holds, and of what it was made."""

    teacher: str  # its path, for people
    teacher_content: str  # a fingerprint of its files
    dtype: str  # in which it computed
    vocab_size: int
    top_k: int
    sequence_length: int
    samples: int
    samples_per_part: int
    data: Fingerprint  # the samples and their order
    version: int = _VERSION

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.samples // self.samples_per_part)

    def samples_of(self, part: int) -> range:
        """Numbers of the samples in a part."""
        first = part * self.samples_per_part
        return range(first, min(first + self.samples_per_part, self.samples))

    def layout(self, part: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each array of a part."""
        rows, length = len(self.samples_of(part)), self.sequence_length
        ids = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)
        return {
            IDS: ((rows, length, self.top_k), ids),
            LOG_PROBABILITIES: ((rows, length, self.top_k + 1), np.dtype(np.float16)),
        }


class TeacherCache:
    """Reads the entries of any sample."""

    def __init__(self, folder: Path):
        """Open a complete cache.

        Raises:
            UserError: there is none, or it is damaged.
        """
        self.folder = folder
        self.header = _read_header(folder / _HEADER)
        self._parts: dict[int, Entries] = {}
        for part in range(self.header.parts):
            self._parts[part] = _open_part(folder, self.header, part)

    @property
    def entries(self) -> dict[str, tuple[int, np.dtype]]:
        """Names of the arrays, how many entries a position has in each, and their dtype."""
        top_k = self.header.top_k
        return {
            IDS: (top_k, np.dtype(np.int32)),
            LOG_PROBABILITIES: (top_k + 1, np.dtype(np.float16)),
        }

    def read(self, sample: int) -> Entries:
        """int32 [length, k] and float16 [length, k + 1] of a sample.

        Raises:
            UserError: its values cannot be what a teacher said.
        """
        part, row = divmod(sample, self.header.samples_per_part)
        arrays = self._parts[part]
        ids = arrays[IDS][row].astype(np.int32)
        log_probabilities = np.array(arrays[LOG_PROBABILITIES][row])
        if not _can_be(ids, log_probabilities, self.header.vocab_size):
            raise UserError(
                f"{self.folder}: the entries of sample {sample} are damaged; "
                f"{_again(self.folder, part)}"
            )
        return {IDS: ids, LOG_PROBABILITIES: log_probabilities}


def _can_be(ids: np.ndarray, log_probabilities: np.ndarray, vocab_size: int) -> bool:
    """Whether a teacher can have said this: else a run would learn nonsense without a word."""
    wide = log_probabilities.astype(np.float32)
    with np.errstate(invalid="ignore"):
        descending = (np.diff(wide[:, :-1], axis=-1) <= 0).all()
    return bool(
        ids.max() < vocab_size
        and (ids[:, :-1] != ids[:, 1:]).all()
        and np.isfinite(wide).all()
        and descending
        and (np.abs(np.exp(wide).sum(axis=-1) - 1) < _ROUNDING).all()
    )


def _again(folder: Path, part: int) -> str:
    return (
        f"to write part {part} again, delete {_file(folder, IDS, part).name}, rename {_HEADER} to "
        f"{_UNFINISHED}, and run the tools/cache_teacher.py command that made it"
    )


class CacheWriter:
    """Writes a cache part by part; one that was stopped goes on with the parts that are missing."""

    def __init__(self, folder: Path, header: CacheHeader):
        """Begin, or go on.

        Raises:
            UserError: the folder holds something else, or cannot be written.
        """
        self.folder, self.header = folder, header
        if (folder / _HEADER).exists():
            raise UserError(f"{folder}: is a complete cache already; choose another folder")
        unfinished = folder / _UNFINISHED
        if unfinished.exists():
            _check_same(unfinished, _read_header(unfinished), header)
            return
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty, and holds no cache to go on with")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
        write_json_file(unfinished, asdict(header))

    def missing(self) -> list[int]:
        """Parts that are still to be written."""
        return [part for part in range(self.header.parts) if not self._has(part)]

    def write(self, part: int, entries: Mapping[str, np.ndarray]) -> None:
        """Write a part; it is there when all of it is.

        Args:
            entries: of the samples `header.samples_of(part)`, shaped as `header.layout` says.
        """
        for name, (shape, dtype) in self.header.layout(part).items():
            values = entries[name].astype(dtype)
            assert values.shape == shape
            path = _file(self.folder, name, part)
            temporary = path.with_suffix(".tmp")
            try:
                with temporary.open("wb") as file:
                    np.save(file, values, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())  # before the name: it must survive a power cut, too
                os.replace(temporary, path)
            except OSError as error:
                raise UserError(
                    f"{path}: cannot be written: {error.strerror}; make room, and run the same "
                    "command again: it goes on here"
                ) from None

    def finish(self) -> None:
        """Make the cache complete."""
        try:
            os.replace(self.folder / _UNFINISHED, self.folder / _HEADER)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def _has(self, part: int) -> bool:
        try:
            _open_part(self.folder, self.header, part)
        except UserError:  # missing, or cut short by a full disk
            return False
        return True


def open_run_cache(config: RunConfig, data: Fingerprint) -> TeacherCache | None:
    """The cache of `distillation.cache`, if set, which must be of this run's samples.

    Raises:
        UserError: it is of other data or another vocabulary, or too short.
    """
    folder = config.distillation.cache
    if folder is None:
        return None
    cache = TeacherCache(folder)
    header = cache.header
    differences = compare_fingerprints(header.data, data)
    if header.vocab_size != config.model.vocab_size:
        differences.append(
            f"model.vocab_size was {header.vocab_size} and is {config.model.vocab_size}"
        )
    needed = config.steps * config.training.global_batch_size
    if needed > header.samples:
        differences.append(f"it has {header.samples} samples, the run needs {needed}")
    if differences:
        raise UserError(
            f"distillation.cache={folder}: was not made for this run:\n  "
            + "\n  ".join(differences)
            + "\nWrite it with tools/cache_teacher.py and this configuration"
        )
    return cache


def _read_header(path: Path) -> CacheHeader:
    if not path.exists():
        hint = "; it is incomplete: run the same command again" if _unfinished(path) else ""
        raise UserError(f"{path.parent}: holds no teacher cache ({path.name}){hint}")
    fields = read_json_object(path)
    try:
        header = CacheHeader(**fields)
        sizes = [header.top_k, header.sequence_length, header.samples, header.samples_per_part]
        sound = all(type(size) is int and size > 0 for size in [*sizes, header.vocab_size])
        sound = sound and isinstance(header.data, dict) and header.top_k < header.vocab_size
    except TypeError as error:
        raise UserError(f"{path}: is not the header of a teacher cache: {error}") from None
    if not sound or header.version != _VERSION:
        raise UserError(f"{path}: is not the header of a teacher cache of version {_VERSION}")
    return header


def _unfinished(path: Path) -> bool:
    return path.with_name(_UNFINISHED).exists()


def _open_part(folder: Path, header: CacheHeader, part: int) -> Entries:
    arrays: Entries = {}
    for name, (shape, dtype) in header.layout(part).items():
        path = _file(folder, name, part)
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except _UNREADABLE as error:
            raise UserError(f"{path}: cannot be read: {error}; {_again(folder, part)}") from None
        if (array.shape, array.dtype) != (shape, dtype):
            raise UserError(
                f"{path}: holds {array.dtype} {array.shape}, {_HEADER} says {dtype} {shape}"
            )
        arrays[name] = array
    return arrays


def _file(folder: Path, name: str, part: int) -> Path:
    return folder / f"{_FILES[name]}-{part:05}.npy"


def _check_same(path: Path, begun: CacheHeader, wanted: CacheHeader) -> None:
    # By way of JSON, as the file has it.
    now: dict[str, Any] = json.loads(json.dumps(asdict(wanted)))
    differing = [
        name for name, value in asdict(begun).items() if value != now[name] and name != "teacher"
    ]
    if differing:
        name = differing[0]
        raise UserError(
            f"{path}: was begun with {name}={asdict(begun)[name]!r}, now it is {now[name]!r}; "
            "set it back, or choose another folder"
        )
