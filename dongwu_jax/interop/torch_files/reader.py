"""Reads torch files, and bare pickles beside them, without torch and without running them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dongwu_jax.errors import UserError
from dongwu_jax.interop.torch_files.archive import LARGEST_PICKLE, Member, TorchArchive
from dongwu_jax.interop.torch_files.globals import Placeholder
from dongwu_jax.interop.torch_files.pickle_machine import PickleMachine
from dongwu_jax.interop.torch_files.soundness import DamagedPickleError, require_walkable
from dongwu_jax.interop.torch_files.stored_array import STORAGE_DTYPES, Storage, StoredArray

__all__ = ["Placeholder", "StoredArray", "read_pickle", "read_torch_file"]


def read_torch_file(path: Path, offset: int = 0, length: int | None = None) -> Any:
    """The object that torch.save wrote, its tensors unread.

    Args:
        path: the file.
        offset: where in it the torch file starts, for one embedded in a larger file.
        length: its bytes; None: up to the end.

    Returns:
        dict (also for OrderedDict), list, tuple (also for torch.Size), set, str, bytes, numbers,
        None, argparse.Namespace (also for SimpleNamespace), a `StoredArray` for each tensor and a
        `Placeholder` for any other object of a known class.

    Raises:
        UserError: the file is missing or damaged, or asks for a global that is not known.
    """
    archive = TorchArchive(path, offset, length)
    return _run(archive.pickle, path, _Storages(archive).load)


def read_state_dict(path: Path) -> dict[str, StoredArray]:
    """The tensors of a file that holds nothing but a flat dict of them.

    Raises:
        UserError: it holds something else, or see `read_torch_file`.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a dict of tensors, not a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, StoredArray):
            raise UserError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor")
    return content


def read_pickle(path: Path) -> Any:
    """The object of a bare pickle file, such as .metadata of torch_dist checkpoints.

    Returns:
        What `read_torch_file` returns; there are no tensors.

    Raises:
        UserError: the file is missing or damaged, or asks for a global that is not known.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            _require_pickle_size(path, size)
            file.seek(0)
            data = file.read(size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _run(data, path, _refuse_storage)


class _Storages:
    """The storages of an archive by key, each found once."""

    def __init__(self, archive: TorchArchive):
        self._archive = archive
        self._members: dict[str, Member] = {}

    def load(self, identifier: Any) -> Storage:
        """What a persistent id ("storage", class, key, device, number of elements) stands for."""
        kind, storage_class, key, _, num_elements = identifier
        if kind != "storage" or not isinstance(key, str) or type(num_elements) is not int:
            raise DamagedPickleError("a persistent id is not that of a storage")
        path = self._archive.path
        dtype = STORAGE_DTYPES.get(storage_class.name)
        if dtype is None:
            raise UserError(
                f"{path}: tensors in a {storage_class.name} are not supported; save them again in "
                "a floating-point dtype"
            )
        member = self._find(key)
        if num_elements * dtype.itemsize != member.num_bytes:
            raise UserError(
                f"{path}: {member.name} has {member.num_bytes} bytes, {num_elements} elements of "
                f"{dtype.name} were expected; the file is damaged: copy it again"
            )
        return Storage(member, dtype)

    def _find(self, key: str) -> Member:
        if key not in self._members:
            found = self._archive.find(f"data/{key}")
            if found is None:
                raise UserError(
                    f"{self._archive.path}: has no storage {key[:50]!r}, which a tensor needs; the "
                    "file is damaged: copy it again"
                )
            self._members[key] = found
        return self._members[key]


def _require_pickle_size(path: Path, size: int) -> None:
    if size > LARGEST_PICKLE:
        raise UserError(
            f"{path}: has {size} bytes, at most {LARGEST_PICKLE} are accepted; is this the index "
            "of a checkpoint? Copy it again"
        )


def _refuse_storage(identifier: Any) -> Storage:
    raise DamagedPickleError("it refers to a storage, but has none")


def _run(data: bytes, path: Path, load_storage: Callable[[Any], Storage]) -> Any:
    try:
        tree = PickleMachine(str(path), load_storage).run(data)
        require_walkable(tree)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        problem = f"{type(error).__name__}: {error}"[:200]
        raise UserError(
            f"{path}: its pickle is damaged ({problem}); copy the file again"
        ) from error
    return tree
