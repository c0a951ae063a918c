"""Checksums of a checkpoint's files, and whether they still hold.

A complete step folder gets `checksums.I-of-N.json` from each of the N processes that wrote it, with
the size and the CRC-32 of the files that are its own. The files are on the disk, not only on their
way to it, when it appears. Orbax takes no notice of it.
"""

import errno
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zlib_ng import zlib_ng

from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object
from dongwu_jax.output_files import write_json_file
from dongwu_jax.training.checkpoints.contents import problems_in_contents
from dongwu_jax.training.checkpoints.folders import older_steps

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checksums\.(\d+)-of-(\d+)\.json")
_PROCESS = re.compile(r"(?:^|\.)process_(\d+)$")
_BLOCK_BYTES = 1 << 22
_THREADS = 8  # a process; a file system of a cluster is as fast as it is asked in parallel
_MOST_SHOWN = 5
# What the system says of a file that is not there. All else it may say, such as that we have no
# permission or that a server does not answer, tells nothing about what the file holds.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)

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

    A step whose process was killed before its checksums were there is read through as a whole.

    Raises:
        OSError: a file that is there cannot be read, so that nothing can be said.
    """
    try:
        sums = _checksums(step)
    except _Damaged as damage:
        return [str(damage)]
    if sums is not None:
        return _differences(step, sums, share)
    problems = problems_in_contents(step, share)
    if problems:
        for file in _files(step):
            _sum(file)  # raises what the system says, which others only pass on as text
    return problems


def check_intact(step: Path, *items: str) -> None:
    """Compare the files of some items of a step with their checksums, if it has any.

    Raises:
        UserError: one is not what was written, or cannot be read.
    """
    try:
        sums = _checksums(step)
        if sums is None:
            if "parameters" in items and (step / "optimizer").is_dir():
                logger.warning("%s: has no checksums; its weights are taken as they are", step)
            return
        chosen = {name: known for name, known in sums.items() if Path(name).parts[0] in items}
        problems = _differences(step, chosen, (0, 1))
    except _Damaged as damage:
        problems = [str(damage)]
    except OSError as error:
        raise UserError(f"{error.filename or step}: cannot be read: {error.strerror}") from None
    if problems:
        raise UserError(
            f"{step}: is damaged: {'; '.join(problems[:_MOST_SHOWN])}. {_instead_of(step)}"
        )


def is_verifiable(step: Path) -> bool:
    """Whether all checksums of a step are there."""
    names = [_NAME.fullmatch(file.name) for file in step.iterdir()]
    parts = [(int(name[1]), int(name[2])) for name in names if name]
    return bool(parts) and {part for part, _ in parts} == set(range(parts[0][1]))


class _Damaged(Exception):
    """Checksums that make no sense."""


def _checksums(step: Path) -> dict[str, list[int]] | None:
    """Size and CRC-32 of each file by its path in the step; None: they are not all there.

    Raises:
        OSError: they cannot be read.
        _Damaged: they can, and are none.
    """
    if not is_verifiable(step):
        return None
    files = [file for file in step.iterdir() if _NAME.fullmatch(file.name)]
    sums: dict[str, list[int]] = {}
    for file in files:
        _sum(file)  # raises what the system says of it
        try:
            sums |= read_json_object(file)["files"]
        except (UserError, ValueError, KeyError, TypeError) as error:
            raise _Damaged(f"{file.name} cannot be understood: {error}") from None
    try:
        return {name: [int(size), int(crc)] for name, (size, crc) in sums.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise _Damaged(f"its checksums cannot be understood: {error}") from None


def _differences(step: Path, sums: dict[str, list[int]], share: Share) -> list[str]:
    """What is wrong with this process's share of some files."""
    files = sorted(sums, key=lambda name: -sums[name][0])[share[0] :: share[1]]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _problem(step / name, sums[name]), files)
        return [f"{name} {problem}" for name, problem in zip(files, found, strict=True) if problem]


def _problem(file: Path, expected: list[int]) -> str | None:
    try:
        size = file.stat().st_size
        if size != expected[0]:
            return f"has {size} bytes instead of {expected[0]}"
        return None if list(_sum(file)) == expected else "has other content than was written"
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return "is missing"


def _instead_of(step: Path) -> str:
    older = older_steps(step)
    if not older:
        return "Restore the file; there is no older step"
    return f"Name an older step, such as {older[0]}, or restore the file"


def _files(step: Path) -> list[Path]:
    """All files of a step but its checksums.

    Raises:
        OSError: a folder cannot be looked into.
    """
    found: list[Path] = []
    for folder, _, names in os.walk(step, onerror=_raise):
        found += [Path(folder, name) for name in names if not _NAME.fullmatch(name)]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


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
