"""Damaged, truncated and hostile torch files give one clear error, never a crash."""

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_trees import assert_same_tree, write

from dongwu_jax.errors import UserError
from dongwu_jax.interop.torch_files.reader import StoredArray, read_pickle, read_torch_file

TREE = {"a": torch.arange(12, dtype=torch.float32).view(3, 4), "b": torch.ones(3), "n": 5}


def saved(tree: Any = TREE) -> bytes:
    """The bytes of a torch file."""
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def read_all(tree: Any) -> None:
    """Read every tensor of a tree."""
    values = (
        tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else []
    )
    for value in [tree, *values]:
        if isinstance(value, StoredArray):
            value.read()


def attempt(read: Callable[[Path], Any], path: Path) -> tuple[Any, str | None]:
    """What a reader gives, all tensors read; or its error."""
    try:
        tree = read(path)
        read_all(tree)
    except UserError as error:
        return None, str(error)
    return tree, None


DATA = saved()


@settings(max_examples=300, deadline=None)
@given(
    position=st.integers(0, len(DATA) - 1),
    value=st.integers(0, 255),
)
def test_a_changed_byte_gives_an_error_or_the_same_values(
    position: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    data = bytearray(DATA)
    data[position] = value
    path.write_bytes(data)
    tree, error = attempt(read_torch_file, path)
    if error:
        assert str(path) in error
    else:
        assert_same_tree(tree, TREE)


PICKLE = zipfile.ZipFile(io.BytesIO(DATA)).read("archive/data.pkl")


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(PICKLE) - 1), piece=st.binary(min_size=1, max_size=3))
def test_a_changed_pickle_never_crashes(
    position: int, piece: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed_pickle.pt"
    data = PICKLE[:position] + piece + PICKLE[position + len(piece) :]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(48))
        archive.writestr("archive/data/1", bytes(12))
    _, error = attempt(read_torch_file, path)
    assert error is None or str(path) in error


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_as_a_pickle_never_crash(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / ".metadata"
    path.write_bytes(data)
    _, error = attempt(read_pickle, path)
    assert error is None or str(path) in error


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    for size in range(0, len(DATA), 7):
        path.write_bytes(DATA[:size])
        with pytest.raises(UserError, match=r"cut\.pt"):
            read_torch_file(path)


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    weight = torch.arange(12, dtype=torch.float32).numpy().tobytes()
    path = tmp_path / "w.pt"
    path.write_bytes(DATA.replace(weight, b"\x01" + weight[1:]))
    stored = read_torch_file(path)["a"]
    with pytest.raises(UserError, match="checksum"):
        stored.read()


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = write(tmp_path / "w.pt", TREE)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same_tree(read_torch_file(path), TREE)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, len(DATA) + 1), (10, None), (-1, 5), (1 << 60, 5), (0, 0), (5, -1)]
)
def test_a_part_outside_the_file_is_refused(
    tmp_path: Path, offset: int, length: int | None
) -> None:
    path = tmp_path / "part.distcp"
    path.write_bytes(DATA)
    if (offset, length) == (10, None):
        path.write_bytes(DATA[:5])
    with pytest.raises(UserError, match=r"part\.distcp"):
        read_torch_file(path, offset, length)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for read in (read_torch_file, read_pickle):
        with pytest.raises(UserError, match="No such file"):
            read(tmp_path / "missing")
        with pytest.raises(UserError, match="directory"):
            read(tmp_path)


def test_the_old_format_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save(TREE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="save it again with torch.save"):
        read_torch_file(tmp_path / "old.pt")


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip file with these members."""
    with zipfile.ZipFile(path, "w", compression) as output:
        for name, data in members.items():
            output.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"model.json": b"{}"}, "holds 0 members"),
        ({"a/data.pkl": b"N.", "b/data.pkl": b"N."}, "holds 2 members"),
        ({"a/data.pkl": b"N.", "a/byteorder": b"big"}, "byteorder"),
    ],
)
def test_other_archives_are_refused(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_torch_file(archive(tmp_path / "x.pt", members))


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", {"a/data.pkl": b"N."}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(path)


def tensor_pickle(
    storage: object = ("storage", "torch FloatStorage", "0", "cpu", 4),
    offset: object = 0,
    shape: object = (4,),
    strides: object = (1,),
) -> bytes:
    """The pickle of one tensor, of which anything may be wrong."""

    def dumped(value: object) -> bytes:
        return pickle.dumps(value, 4)[2:-1]

    parts = storage if isinstance(storage, tuple) else (storage,)
    body = b"".join(
        b"c" + part.replace(" ", "\n").encode() + b"\n"
        if isinstance(part, str) and part.startswith("torch ")
        else dumped(part)
        for part in parts
    )
    rest = b"".join(dumped(part) for part in (offset, shape, strides, False, None))
    return b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n((" + body + b"tQ" + rest + b"tR."


FLOATS = "torch FloatStorage"


@pytest.mark.parametrize(
    "options",
    [
        {"storage": ("storage", FLOATS, "7", "cpu", 4)},
        {"storage": ("storage", FLOATS, "../data.pkl", "cpu", 4)},
        {"storage": ("storage", FLOATS, "/etc/passwd", "cpu", 4)},
        {"storage": ("storage", FLOATS, 0, "cpu", 4)},
        {"storage": ("storage", FLOATS, "0", "cpu", 5)},
        {"storage": ("storage", FLOATS, "0", "cpu", -4)},
        {"storage": ("storage", FLOATS, "0", "cpu", 10**18)},
        {"storage": ("storage", FLOATS, "0", "cpu", 4.0)},
        {"storage": ("storage", FLOATS, "0", "cpu")},
        {"storage": ("module", FLOATS, "0", "cpu", 4)},
        {"storage": ("storage", "torch QInt8Storage", "0", "cpu", 16)},
        {"storage": ("storage", "float", "0", "cpu", 4)},
        {"storage": ()},
        {"offset": 1},
        {"offset": -1},
        {"offset": 10**30},
        {"offset": True},
        {"shape": (5,)},
        {"shape": (-4,)},
        {"shape": (10**18,)},
        {"shape": (4, 10**18), "strides": (1, 0)},
        {"shape": (10**9, 10**9), "strides": (0, 0)},
        {"shape": (0, 10**30), "strides": (1, 1)},
        {"shape": (0, 2**62, 2**62), "strides": (1, 1, 1)},
        {"shape": (1,) * 100, "strides": (1,) * 100},
        {"shape": (2, 2)},
        {"shape": 4},
        {"shape": "ab"},
        {"shape": ([],)},
        {"strides": (-1,)},
        {"strides": (2,)},
        {"strides": (2**63,)},
        {"strides": (1.0,)},
    ],
)
def test_tensors_outside_their_storage_are_refused(
    tmp_path: Path, options: dict[str, object]
) -> None:
    members = {"x/data.pkl": tensor_pickle(**options), "x/data/0": bytes(16)}
    with pytest.raises(UserError, match=r"x\.pt"):
        read_all([read_torch_file(archive(tmp_path / "x.pt", members))])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shape": (1, 4), "strides": (10**30, 1)},
        {"offset": 4, "shape": (0,)},
        {"offset": 3, "shape": (1,)},
    ],
)
def test_the_same_tensors_within_it_are_read(tmp_path: Path, options: dict[str, object]) -> None:
    members = {"x/data.pkl": tensor_pickle(**options), "x/data/0": bytes(16)}
    stored = read_torch_file(archive(tmp_path / "x.pt", members))
    assert stored.read().shape == options.get("shape", (4,))


def test_a_bare_pickle_has_no_storages(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(tensor_pickle())
    with pytest.raises(UserError, match="storage"):
        read_pickle(tmp_path / ".metadata")


def test_a_bare_pickle_of_absurd_size_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / ".metadata").open("wb") as file:
        file.truncate(1 << 40)  # takes no space
    with pytest.raises(UserError, match=r"\.metadata: has 1099511627776 bytes, at most"):
        read_pickle(tmp_path / ".metadata")


def test_a_directory_of_absurd_size_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    size = 3 << 30
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, size, 0, 0))
    with pytest.raises(UserError, match="a directory of 3221225472 bytes"):
        read_torch_file(path)


def test_a_file_cut_after_opening_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", {"w": torch.zeros(1000)})
    stored = read_torch_file(path)["w"]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="changed while"):
        stored.read()
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        stored.read()


def test_torch_is_not_imported_by_the_reader() -> None:

    code = (
        "import sys, dongwu_jax.interop.torch_files.reader, dongwu_jax.interop.torch_files.writer;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
