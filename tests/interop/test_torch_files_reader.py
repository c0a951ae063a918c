import argparse
import io
import types
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_trees import assert_same_tensor, assert_same_tree, load_with_stubs, write

from dongwu_jax.interop.torch_files.reader import (
    Placeholder,
    StoredArray,
    read_pickle,
    read_torch_file,
)

DTYPES = [
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Of every dtype and layout, possibly a view of a larger one."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    tensor = (numbers * 50).to(dtype)
    kind = draw(st.sampled_from(["whole", "sliced", "transposed", "expanded", "parameter"]))
    if kind == "sliced" and shape:
        axis = draw(st.integers(0, len(shape) - 1))
        start = draw(st.integers(0, shape[axis]))
        return tensor.narrow(axis, start, draw(st.integers(0, shape[axis] - start)))
    if kind == "transposed":
        return tensor.permute(draw(st.permutations(range(len(shape)))))
    if kind == "expanded":
        return tensor.unsqueeze(0).expand(3, *shape)
    if kind == "parameter" and dtype.is_floating_point:
        return torch.nn.Parameter(tensor)
    return tensor


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=6)
    | st.sampled_from(DTYPES)
)
trees = st.recursive(
    scalars | tensors(),
    lambda children: (
        st.lists(children, max_size=3)
        | st.tuples(children, children)
        | st.dictionaries(st.text(max_size=4) | st.integers(), children, max_size=3)
        | st.dictionaries(st.text(max_size=4), children, max_size=3).map(OrderedDict)
        | st.dictionaries(st.from_regex("[a-z]{1,3}", fullmatch=True), children, max_size=3).map(
            lambda fields: argparse.Namespace(**fields)
        )
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees)
def test_reads_what_torch_saves(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.pt"
    torch.save(tree, path)
    assert_same_tree(read_torch_file(path), tree)


@settings(max_examples=30, deadline=None)
@given(tree=trees, before=st.integers(0, 200), after=st.integers(0, 200))
def test_reads_a_part_of_a_file(
    tree: Any, before: int, after: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    data = buffer.getvalue()
    path = tmp_path_factory.getbasetemp() / "embedded.distcp"
    path.write_bytes(b"\x07" * before + data + b"\x08" * after)
    assert_same_tree(read_torch_file(path, before, len(data)), tree)


def test_shared_storage_is_read_by_range(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32)
    tree = {
        "whole": whole,
        "middle": whole[5:9],
        "columns": whole.view(4, 6)[:, 2:4],
        "transposed": whole.view(4, 6).t(),
        "diagonal": torch.as_strided(whole, (4,), (7,)),
        "overlapping": whole.unfold(0, 5, 2),
        "scalar": whole[3],
        "repeated": whole[3].expand(2, 3),
    }
    assert_same_tree(read_torch_file(write(tmp_path / "shared.pt", tree)), tree)


def test_dtypes_without_a_storage_class(tmp_path: Path) -> None:
    numbers = torch.arange(6)
    tree = {
        "float8_e4m3fn": numbers.to(torch.float8_e4m3fn),
        "float8_e5m2": numbers.to(torch.float8_e5m2)[2:],
        "uint16": numbers.to(torch.uint16)[1:4],
        "uint64": numbers.to(torch.uint64),
        "complex64": numbers.to(torch.complex64),
    }
    assert_same_tree(read_torch_file(write(tmp_path / "rare.pt", tree)), tree)


def test_attributes_and_module_metadata_are_left_out(tmp_path: Path) -> None:
    state = torch.nn.Linear(3, 2).state_dict()  # an OrderedDict with the attribute _metadata
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    plain = torch.zeros(3)
    plain.partition_dim = 1  # type: ignore[attr-defined]
    tree = {"state": state, "parameter": parameter, "plain": plain}
    assert_same_tree(read_torch_file(write(tmp_path / "attributes.pt", tree)), tree)


def test_objects_become_placeholders(tmp_path: Path) -> None:
    tree = {
        "random": np.random.RandomState(0).get_state(),
        "path": Path("a/b"),
        "device": torch.device("cuda", 1),
        "buffer": io.BytesIO(b"\x80\x02cos\nsystem\n."),
        "number": np.float64(1.5),
        "names": {"a", "b"},
        "simple": types.SimpleNamespace(width=3),
        "size": torch.Size([2, 3]),
    }
    ours = read_torch_file(write(tmp_path / "objects.pt", tree))
    assert isinstance(ours["random"][1], Placeholder)
    assert ours["path"].name == "pathlib.PosixPath"
    assert ours["path"].arguments == ("a", "b")
    assert ours["device"].arguments == ("cuda", 1)
    assert ours["buffer"].state[0] == b"\x80\x02cos\nsystem\n."
    assert ours["number"].name.endswith(".multiarray.scalar")
    assert ours["names"] == {"a", "b"}
    assert ours["simple"] == argparse.Namespace(width=3)
    assert ours["size"] == (2, 3)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    tree = {
        "w": torch.ones(2),
        "b": b"\xff\x00",
        "e": b"",
        "n": 1 << 80,
        "s": {1, 2},
        "t": "é" * 300,
    }
    torch.save(tree, tmp_path / "p.pt", pickle_protocol=protocol)
    ours = read_torch_file(tmp_path / "p.pt")
    assert ours.pop("s") == tree.pop("s")
    assert_same_tree(ours, tree)


def test_values_are_in_memory_of_their_own(tmp_path: Path) -> None:
    stored = read_torch_file(write(tmp_path / "w.pt", torch.ones(4)))
    first = stored.read()
    first[:] = 0
    assert stored.read().tolist() == [1, 1, 1, 1]


def test_every_reference_checkpoint(shared_data: Path) -> None:
    files = sorted(shared_data.glob("megatron/**/*.pt"))
    assert files
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in files:
            assert_same_tree(read_torch_file(file), load_with_stubs(file))


def test_reference_distributed_checkpoint(shared_data: Path) -> None:
    folder = shared_data / "megatron/ckpt/mcore/dist_gqa_untied_tp2pp2/iter_0000007"
    metadata = read_pickle(folder / ".metadata")
    assert metadata.name == "torch.distributed.checkpoint.metadata.Metadata"
    for info in metadata.state["storage_data"].values():
        file, offset, length = (info.state[k] for k in ("relative_path", "offset", "length"))
        ours = read_torch_file(folder / file, offset, length)
        theirs = load_with_stubs(io.BytesIO((folder / file).read_bytes()[offset : offset + length]))
        if isinstance(theirs, torch.Tensor):
            assert_same_tensor(ours, theirs)
        else:
            assert not isinstance(ours, StoredArray)
