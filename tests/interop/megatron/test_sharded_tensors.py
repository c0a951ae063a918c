import itertools
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as torch_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from dongwu_jax.errors import UserError
from dongwu_jax.interop.megatron.sharded_tensors import ShardedTensors
from dongwu_jax.interop.megatron.sharded_writer import ShardedTensorsWriter

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def fresh_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@st.composite
def cut_arrays(draw):
    """An array, the places where each dimension is cut, a region of it, and a seed."""
    shape = draw(st.lists(st.integers(1, 6), max_size=3).map(tuple))
    cuts = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    region = tuple(
        slice(*sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in shape
    )
    return shape, cuts, region, draw(st.integers(0, 100))


@settings(max_examples=40, deadline=None)
@given(cut=cut_arrays())
def test_any_cut_reads_back(tmp_path_factory, cut):
    shape, cuts, region, seed = cut
    rng = np.random.default_rng(seed)
    array = rng.normal(size=shape).astype(np.float32)
    boxes = list(itertools.product(*(list(itertools.pairwise(places)) for places in cuts)))
    rng.shuffle(boxes)
    folder = fresh_folder(tmp_path_factory.getbasetemp() / "cut")
    with ShardedTensorsWriter(folder) as writer:
        for box in boxes:
            values = array[tuple(slice(*bounds) for bounds in box)]
            writer.write("a", shape, tuple(int(start) for start, _ in box), values)
        writer.write_object("note/shard_0_1", {"text": "x", "numbers": [1, 2.5, None]})
    shards = ShardedTensors(folder)
    assert np.array_equal(shards.read("a"), array)
    assert np.array_equal(shards.read("a", region), array[region])
    assert shards.read_object("note/shard_0_1") == {"text": "x", "numbers": [1, 2.5, None]}
    loaded = {"a": torch.empty(shape)}
    torch_checkpoint.load(loaded, checkpoint_id=folder, no_dist=True)
    assert np.array_equal(loaded["a"].numpy(), array)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint in two pieces, by torch."""
    folder = tmp_path / "saved"
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 3, dtype=torch.bfloat16)}
    torch_checkpoint.save(tensors, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    return folder


def rewrite(folder, change):
    """Change the index with torch's own classes."""
    index = folder / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    change(metadata)
    index.write_bytes(pickle.dumps(metadata))


def test_torchs_own_files_are_read(saved):
    shards = ShardedTensors(saved)
    assert np.array_equal(shards.read("a"), np.arange(6.0, dtype=np.float32))
    assert shards.tensors["b"].shape == (2, 3)
    assert shards.tensors["b"].dtype.name == "bfloat16"


def test_incomplete_saves_are_refused(saved):
    (saved / "metadata.json").unlink()
    with pytest.raises(UserError, match="was not completed"):
        ShardedTensors(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"sharded_backend": "zarr"}), "'zarr', only 'torch_dist'"),
        ("{}", "does not name"),
        ("not json", "is not JSON"),
        ("[1]", "must hold a JSON object"),
    ],
)
def test_other_backends_are_refused(saved, content, message):
    (saved / "metadata.json").write_text(content)
    with pytest.raises(UserError, match=message):
        ShardedTensors(saved)


def test_missing_index(saved):
    (saved / ".metadata").unlink()
    with pytest.raises(UserError, match="hidden files included"):
        ShardedTensors(saved)


def test_missing_data_file(saved):
    (saved / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match=r"__0_0.distcp: is missing"):
        ShardedTensors(saved)


def test_truncated_data_file(saved):
    file = saved / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        ShardedTensors(saved)


def test_damaged_data_file(saved):
    file = saved / "__0_0.distcp"
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(UserError, match=r"__0_0.distcp"):
        ShardedTensors(saved).read("a")


@pytest.mark.parametrize("path", ["../secret.distcp", "/etc/passwd", "sub/x.distcp", "..", ""])
def test_files_elsewhere_are_refused(saved, path):
    def change(metadata):
        for info in metadata.storage_data.values():
            info.relative_path = path

    rewrite(saved, change)
    with pytest.raises(UserError, match="refused"):
        ShardedTensors(saved)


def test_compression_is_refused(saved):
    def change(metadata):
        for info in metadata.storage_data.values():
            info.transform_descriptors = ["zstd"]

    rewrite(saved, change)
    with pytest.raises(UserError, match=r"compressed \(\['zstd'\]\)"):
        ShardedTensors(saved)


def test_pieces_that_are_missing_or_overlap(saved):
    def leave_out(metadata):
        metadata.state_dict_metadata["a"].chunks.clear()

    def repeat(metadata):
        metadata.state_dict_metadata["a"].chunks *= 2

    for change, message in ((repeat, "overlap"), (leave_out, "hold 0 of 6 values")):
        rewrite(saved, change)
        with pytest.raises(UserError, match=message):
            ShardedTensors(saved).read("a")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.storage_data.clear(),
        lambda m: m.state_dict_metadata.update(a=3),
        lambda m: setattr(m, "storage_data", None),
        lambda m: setattr(m.state_dict_metadata["a"], "size", torch.Size([3])),
        lambda m: setattr(m.state_dict_metadata["a"], "size", torch.Size([6, 1])),
        lambda m: [setattr(info, "offset", -5) for info in m.storage_data.values()],
        lambda m: [setattr(info, "length", "x") for info in m.storage_data.values()],
        lambda m: [setattr(info, "length", 1) for info in m.storage_data.values()],
    ],
)
def test_nonsense_in_the_index(saved, change):
    rewrite(saved, change)
    with pytest.raises(UserError, match=r"\.metadata: is not the index"):
        ShardedTensors(saved)


def test_index_that_disagrees_with_the_data(saved):
    def change(metadata):
        described = metadata.state_dict_metadata["a"]
        described.size = described.chunks[0].sizes = torch.Size([2, 3])
        described.chunks[0].offsets = torch.Size([0, 0])
        index = next(index for index in metadata.storage_data if index.fqn == "a")
        info = metadata.storage_data.pop(index)
        object.__setattr__(index, "offset", torch.Size([0, 0]))
        metadata.storage_data[index] = info

    rewrite(saved, change)
    with pytest.raises(UserError, match=r"has shape \(6,\).*says \(2, 3\)"):
        ShardedTensors(saved).read("a")


class _Exploit:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_malicious_index_runs_nothing(saved, tmp_path):
    sentinel = tmp_path / "sentinel"
    (saved / ".metadata").write_bytes(pickle.dumps(_Exploit(f"touch {sentinel}")))
    with pytest.raises(UserError, match="system"):
        ShardedTensors(saved)
    assert not sentinel.exists()


def test_interrupted_writing_leaves_no_mark(tmp_path):
    def interrupted() -> None:
        with ShardedTensorsWriter(tmp_path) as writer:
            writer.write("a", (2,), (0,), np.zeros(2, np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(UserError, match="was not completed"):
        ShardedTensors(tmp_path)
