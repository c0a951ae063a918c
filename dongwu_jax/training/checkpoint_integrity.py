"""Checksums of a checkpoint's files, and whether they still hold.

A complete step folder gets `checksums.I-of-N.json` from each of the N processes that wrote it, with
the size and the CRC-32 of the files that are its own. The files are on the disk, not only on their
way to it, when it appears. Orbax takes no notice of it.
"""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorstore as ts
from zlib_ng import zlib_ng

from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object
from dongwu_jax.output_files import write_json_file

_NAME = re.compile(r"checksums\.(\d+)-of-(\d+)\.json")
_PROCESS = re.compile(r"(?:^|\.)process_(\d+)$")
_BLOCK_BYTES = 1 << 22
_THREADS = 8  # a process; a file system of a cluster is as fast as it is asked in parallel

Share = tuple[int, int]
"""Number of a process, and how many share the work."""


def write_checksums(step: Path, share: Share) -> None:
    """Write the checksums of what this process has written of a complete step.

    Raises:
        OSError: a file has gone, as it may when newer steps are complete, or cannot be read.
        UserError: the checksums cannot be written.
    """
    process, processes = share
    own = [file for file in _files(step) if _writer(file.relative_to(step)) % processes == process]
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(_on_disk, own))
    record = {
        "files": {str(file.relative_to(step)): found for file, found in zip(own, sums, strict=True)}
    }
    checksums = step / f"checksums.{process}-of-{processes}.json"
    write_json_file(checksums, record)
    _sync(checksums)
    _sync(step)


def problems_of(step: Path, share: Share) -> list[str]:
    """What is wrong with this process's share of a step's files; every file has one to look at it.

    A step whose process was killed before its checksums were there can only be read as a whole.
    """
    try:
        sums = _checksums(step)
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"its checksums cannot be read: {error}"]
    if sums is None:
        return _unreadable(step, share)
    files = sorted(sums, key=lambda name: -sums[name][0])[share[0] :: share[1]]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _problem(step / name, sums[name]), files)
        return [f"{name} {problem}" for name, problem in zip(files, found, strict=True) if problem]


def is_verifiable(step: Path) -> bool:
    """Whether all checksums of a step are there."""
    names = [_NAME.fullmatch(file.name) for file in step.iterdir()]
    parts = [(int(name[1]), int(name[2])) for name in names if name]
    return bool(parts) and {part for part, _ in parts} == set(range(parts[0][1]))


def _checksums(step: Path) -> dict[str, list[int]] | None:
    """Size and CRC-32 of each file by its path in the step; None: they are not all there."""
    if not is_verifiable(step):
        return None
    sums: dict[str, list[int]] = {}
    for file in step.iterdir():
        if _NAME.fullmatch(file.name):
            sums |= read_json_object(file)["files"]
    return {name: [int(size), int(crc)] for name, (size, crc) in sums.items()}


def _files(step: Path) -> list[Path]:
    files = (path for path in step.rglob("*") if path.is_file())
    return sorted(file for file in files if not _NAME.fullmatch(file.name))


def _writer(file: Path) -> int:
    """The process that wrote a file, which is likely to have it in memory still."""
    found = [match for part in file.parts if (match := _PROCESS.search(part))]
    return int(found[0][1]) if found else 0


def _on_disk(file: Path) -> list[int]:
    """Size and CRC-32 of a file, once it is on the disk."""
    _sync(file)
    return list(_sum(file))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sum(file: Path) -> tuple[int, int]:
    size, crc, block = 0, 0, memoryview(bytearray(_BLOCK_BYTES))
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(block):
            crc = zlib_ng.crc32(block[:count], crc)
            size += count
    return size, crc


def _problem(file: Path, expected: list[int]) -> str | None:
    try:
        if file.stat().st_size != expected[0]:
            return f"has {file.stat().st_size} bytes instead of {expected[0]}"
        return None if list(_sum(file)) == expected else "has other content than was written"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _unreadable(step: Path, share: Share) -> list[str]:
    """Problems of a step without checksums: files that are missing or cut short."""
    problems: list[str] = []
    for item in ("parameters", "optimizer"):
        if (step / item / "manifest.ocdbt").is_file():
            base = {"driver": "file", "path": f"{(step / item).absolute()}/"}
            try:
                problems += _unread(item, {"driver": "ocdbt", "base": base}, share)
            except (ValueError, OSError) as error:
                problems.append(f"{item} cannot be read: {_first_line(error)}")
    return problems


def _unread(item: str, storage: dict[str, Any], share: Share) -> Iterable[str]:
    store = ts.KvStore.open(storage).result()
    for key in sorted(store.list().result())[share[0] :: share[1]]:
        try:
            store.read(key).result()
        except (ValueError, OSError) as error:
            yield f"{item}/{key.decode()} cannot be read: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
