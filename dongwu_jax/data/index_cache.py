"""Sample indexes on disk: built once, then memory-mapped by every later process.

A file is named by the hash of everything its content depends on, so nothing is ever stale. Any
process may build any entry, alone: there is no lock, no barrier and no need for a shared file
system. An entry is its `.npy` files and, written last, a manifest with their checksums.
"""

import contextlib
import hashlib
import json
import os
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.sealed_json import read_sealed_json, sealed

_FORMAT = 2  # change it when the meaning of any array changes

Arrays = dict[str, np.ndarray]


class IndexCache:
    """A folder of arrays addressed by what they were made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load_or_build(self, key: Mapping[str, Any], build: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of `key`, from disk if they are there and intact.

        Reading checks every byte once (about half a second a gigabyte). A damaged entry is rebuilt;
        a folder that cannot be written to costs a warning.

        Args:
            key: everything the arrays depend on, JSON-able.
            build: makes the arrays; must be deterministic.
        """
        stem = _stem(key)
        arrays = self._read(stem)
        if arrays is not None:
            return arrays
        arrays = build()
        try:
            self._write(stem, key, arrays)
        except OSError as error:
            warnings.warn(
                f"{self.folder}: sample indexes cannot be kept ({error.strerror}) and will be "
                "built again by each process; set data.index_cache to a writable folder",
                stacklevel=2,
            )
            return arrays
        return self._read(stem) or arrays  # mapped, so that processes of one host share memory

    def _read(self, stem: str) -> Arrays | None:
        """Map the arrays of an entry; None if it is absent, incomplete or damaged."""
        path = self._manifest_path(stem)
        arrays: Arrays = {}
        try:
            if not path.exists():
                return None
            for name, expected in read_sealed_json(path)["checksums"].items():
                path = self._array_path(stem, name)
                if _checksum(path) != expected:
                    raise ValueError("checksum")
                arrays[name] = np.asarray(np.lib.format.open_memmap(path, mode="r"))
        except FileNotFoundError:
            return None
        except (UserError, OSError, ValueError):
            warnings.warn(f"{path}: unreadable or damaged; building it again", stacklevel=3)
            return None
        return arrays

    def _write(self, stem: str, key: Mapping[str, Any], arrays: Arrays) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        checksums = {}
        for name, array in arrays.items():
            path = self._array_path(stem, name)
            with _replacing(path) as file:
                np.save(file, array, allow_pickle=False)
            checksums[name] = _checksum(path)
        with _replacing(self._manifest_path(stem)) as file:
            manifest = sealed({"key": dict(key), "checksums": checksums})
            file.write(json.dumps(manifest, indent=1).encode())

    def _manifest_path(self, stem: str) -> Path:
        return self.folder / f"{stem}.json"

    def _array_path(self, stem: str, name: str) -> Path:
        return self.folder / f"{stem}-{name}.npy"


def _stem(key: Mapping[str, Any]) -> str:
    text = json.dumps({"format": _FORMAT, **key}, sort_keys=True)
    return f"{key['kind']}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _checksum(path: Path) -> int:
    """CRC-32 of a whole file, header included."""
    return zlib.crc32(np.memmap(path, dtype=np.uint8, mode="r").data)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Write beside `path` under a name of our own, then rename: readers see all or nothing."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
