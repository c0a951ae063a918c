import argparse
import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch_trees import assert_same_tree

from dongwu_jax.interop.torch_files import zip_writer
from dongwu_jax.interop.torch_files.reader import read_pickle, read_torch_file
from dongwu_jax.interop.torch_files.writer import (
    GlobalName,
    Instance,
    PendingTensor,
    TorchFileWriter,
    dump_pickle,
)

DTYPES = [
    np.dtype(kind)
    for kind in (ml_dtypes.bfloat16, "f2", "f4", "f8", "i8", "i4", "i2", "i1", "u1", "?")
]
pending_tensors = st.builds(
    PendingTensor,
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from(DTYPES),
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 2000), 1 << 2000)
    | st.integers(-300, 70000)
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=6)
)
trees = st.recursive(
    scalars | pending_tensors,
    lambda children: (
        st.lists(children, max_size=3)
        | st.lists(children, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), children, max_size=3)
        | st.dictionaries(st.text(max_size=4), children, max_size=3).map(OrderedDict)
        | st.dictionaries(st.from_regex("[a-z]{1,3}", fullmatch=True), children, max_size=3).map(
            lambda fields: argparse.Namespace(**fields)
        )
    ),
    max_leaves=8,
)


def pending_in(tree: Any) -> list[PendingTensor]:
    """The tensors of a tree, in its order."""
    if isinstance(tree, PendingTensor):
        return [tree]
    if isinstance(tree, argparse.Namespace):
        return pending_in(vars(tree))
    if isinstance(tree, dict):
        return pending_in(list(tree.values()))
    return [p for item in tree for p in pending_in(item)] if isinstance(tree, list | tuple) else []


def random_values(pending: PendingTensor, seed: int) -> np.ndarray:
    """Values of an announced tensor."""
    return (np.random.default_rng(seed).normal(size=pending.shape) * 50).astype(pending.dtype)


def write(file: Any, tree: Any) -> list[np.ndarray]:
    """Write a tree with random values; gives them."""
    values = [random_values(pending, seed) for seed, pending in enumerate(pending_in(tree))]
    writer = TorchFileWriter(file, tree)
    for value in values:
        writer.write(value)
    writer.close()
    return values


def torch_load(data: bytes) -> Any:
    """torch's own reading, with its own safety on."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(io.BytesIO(data), weights_only=True)


@settings(max_examples=100, deadline=None)
@given(tree=trees, before=st.sampled_from([0, 0, 1, 77]))
def test_torch_and_our_reader_give_what_was_written(
    tree: Any, before: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.pt"
    with path.open("wb") as file:
        file.write(bytes(before))
        values = write(file, tree)
    data = path.read_bytes()[before:]
    loaded = torch_load(data)
    assert_same_tree(read_torch_file(path, before), loaded)
    found = tensors_in(loaded)
    assert [tuple(t.shape) for t in found] == [v.shape for v in values]
    for tensor, value in zip(found, values, strict=True):
        assert str(tensor.dtype) == f"torch.{value.dtype.name}"
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == value.tobytes()


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors of a loaded tree, in its order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, argparse.Namespace):
        return tensors_in(vars(tree))
    if isinstance(tree, dict):
        return tensors_in(list(tree.values()))
    return [t for item in tree for t in tensors_in(item)] if isinstance(tree, list | tuple) else []


TREE = {
    "model": OrderedDict(
        a=PendingTensor((3, 5), np.dtype(np.float32)),
        b=PendingTensor((), np.dtype(ml_dtypes.bfloat16)),
        c=PendingTensor((7,), np.dtype(np.int8)),
    ),
    "iteration": 3,
}


@pytest.mark.parametrize("zip64_above", [(1 << 31) - 1, 1])
def test_archive_is_sound_and_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zip64_above: int
) -> None:
    monkeypatch.setattr(zip_writer, "_ZIP64_ABOVE", zip64_above)
    path = tmp_path / "w.pt"
    with path.open("wb") as file:
        values = write(file, TREE)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    data = path.read_bytes()
    assert data.count(values[0].tobytes()) == 1
    assert data.index(values[0].tobytes()) % 64 == 0
    assert_same_tree(read_torch_file(path), torch_load(data))
    assert_same_tree(read_torch_file(path), torch.load(path, mmap=True, weights_only=True))


def test_equal_input_gives_equal_bytes() -> None:
    first, second = io.BytesIO(), io.BytesIO()
    write(first, TREE)
    write(second, TREE)
    assert first.getvalue() == second.getvalue()


def test_non_contiguous_values_are_written_in_c_order(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    with (tmp_path / "t.pt").open("wb") as file:
        writer = TorchFileWriter(file, PendingTensor((3, 2), values.dtype))
        writer.write(values)
        writer.close()
    assert torch.equal(torch.load(tmp_path / "t.pt"), torch.tensor(values.copy()))


def test_what_was_not_announced_is_refused() -> None:
    writer = TorchFileWriter(io.BytesIO(), {"a": PendingTensor((2,), np.dtype(np.float32))})
    with pytest.raises(ValueError, match="announced"):
        writer.write(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="announced"):
        writer.write(np.zeros(2, np.float16))
    with pytest.raises(ValueError, match="1 of 1 tensors were not written"):
        writer.close()
    writer.write(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="written already"):
        writer.write(np.zeros(2, np.float32))


def test_an_abandoned_file_is_not_complete(tmp_path: Path) -> None:
    path = tmp_path / "abandoned.pt"
    with path.open("wb") as file:
        writer = TorchFileWriter(file, TREE)
        writer.write(np.zeros((3, 5), np.float32))
        del writer
    assert not zipfile.is_zipfile(path)


@pytest.mark.parametrize("value", [{1}, object(), np.float32(1), np.zeros(2), 1j, 1 << 2040])
def test_what_cannot_be_written_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be written"):
        TorchFileWriter(io.BytesIO(), {"a": value})


def test_a_bare_pickle_makes_the_objects_of_torch(tmp_path: Path) -> None:
    module = "torch.distributed.checkpoint.metadata"
    size = Instance(GlobalName("torch", "Size"), ((2, 3),))
    chunk = Instance(
        GlobalName(module, "ChunkStorageMetadata"), state={"offsets": size, "sizes": size}
    )
    key = Instance(
        GlobalName(module, "MetadataIndex"), state={"fqn": "w", "offset": size, "index": 0}
    )
    data = dump_pickle({key: chunk, "dtype": GlobalName("torch", "bfloat16")})
    loaded = pickle.loads(data)
    expected = MetadataIndex("w", torch.Size([2, 3]), 0)
    assert loaded[expected] == ChunkStorageMetadata(torch.Size([2, 3]), torch.Size([2, 3]))
    assert loaded["dtype"] is torch.bfloat16
    (tmp_path / ".metadata").write_bytes(data)
    ours = read_pickle(tmp_path / ".metadata")
    assert next(iter(ours)).state == {"fqn": "w", "offset": (2, 3), "index": 0}


def test_a_bare_pickle_holds_no_tensor() -> None:
    with pytest.raises(TypeError, match="bare pickle"):
        dump_pickle(TREE)
