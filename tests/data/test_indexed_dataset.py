"""The .bin/.idx files against vectors that Megatron's own code produced."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_datasets import write_dataset

from dongwu_jax.data.indexed_dataset import IndexedDataset, bin_path, idx_path, token_dtype
from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter, WriterPosition
from dongwu_jax.errors import UserError

_DOCUMENTS = [[11, 12, 13, 0], [21, 22, 0], [], [31, 32, 33, 34, 35, 0], [41, 0]]
_BIN_HEX = "0b000c000d0000001500160000001f002000210022002300000029000000"
_SHA256 = {
    "<u2": (
        "255a3801e8c4d31fa3388a03e36611743ea9af4f266f8cff33ad6251d0856c00",
        "5d1d226feca79b9b564f00b75b6c246b785082b6e39281054714dd437836f0c7",
    ),
    "<i4": (
        "c18abd3265264a6d14283cb61691ae49b8d87bea3c9e397cb0954bc4f71bedf0",
        "83f3428f73b983425dd6dbe6f329f94752d1ea96b443615225c1bb779bbe36ae",
    ),
}


def _write(prefix: Path, documents: list[list[int]], dtype: str = "<u2") -> IndexedDataset:
    return IndexedDataset(write_dataset(prefix, documents, dtype))


@pytest.mark.parametrize("dtype", _SHA256)
def test_writes_the_bytes_of_megatron(tmp_path: Path, dtype: str) -> None:
    _write(tmp_path / "a", _DOCUMENTS, dtype)
    files = [tmp_path / "a.bin", tmp_path / "a.idx"]
    assert tuple(hashlib.sha256(f.read_bytes()).hexdigest() for f in files) == _SHA256[dtype]
    assert sorted(tmp_path.iterdir()) == files
    if dtype == "<u2":
        assert files[0].read_bytes().hex() == _BIN_HEX


def test_reads_what_megatron_wrote(shared_data: Path) -> None:
    data = shared_data / "megatron" / "data"
    dataset = IndexedDataset(data / "out" / "u16_w1_edge_text_document")
    raw = np.fromfile(bin_path(dataset.prefix), "<u2")
    assert dataset.dtype == np.uint16
    assert len(dataset) == 44  # one of the 45 documents is empty
    assert dataset.num_tokens == len(raw)
    assert len(dataset.document_indices) == 46
    assert np.array_equal(np.concatenate([dataset.get(i) for i in range(44)]), raw)


def test_megatron_core_reads_the_same(tmp_path: Path) -> None:
    theirs = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    dataset = _write(tmp_path / "a", _DOCUMENTS)
    other = theirs.IndexedDataset(str(tmp_path / "a"))
    assert np.array_equal(other.sequence_lengths, dataset.sequence_lengths)
    assert np.array_equal(other.document_indices, dataset.document_indices)
    for i in range(len(dataset)):
        assert np.array_equal(other[i], dataset.get(i))


_DOCUMENT = st.lists(st.lists(st.integers(0, 60000), max_size=6), max_size=4)


@settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(_DOCUMENT, max_size=6), st.sampled_from(["<u2", "<i4", "<i8"]))
def test_round_trip(tmp_path: Path, documents: list[list[list[int]]], dtype: str) -> None:
    with IndexedDatasetWriter(tmp_path / "x", np.dtype(dtype)) as writer:
        for document in documents:
            tokens = [token for sequence in document for token in sequence]
            writer.add_document(tokens, [len(sequence) for sequence in document])
    dataset = IndexedDataset(tmp_path / "x")
    copy = pickle.loads(pickle.dumps(dataset))
    sequences = [sequence for document in documents for sequence in document]
    assert [copy.get(i).tolist() for i in range(len(copy))] == sequences
    counts = [len(document) for document in documents]
    assert np.diff(dataset.document_indices).tolist() == counts
    assert dataset.num_tokens == sum(map(len, sequences))


def test_parts_of_a_sequence(tmp_path: Path) -> None:
    dataset = _write(tmp_path / "a", _DOCUMENTS)
    assert dataset.get(2, offset=1, length=3).tolist() == [32, 33, 34]
    assert dataset.get(2, offset=4).tolist() == [35, 0]
    assert not dataset.get(2).flags.writeable
    for index, offset, length in ((4, 0, None), (-1, 0, None), (1, 0, 4), (1, 2, 2), (1, -1, 1)):
        with pytest.raises(IndexError):
            dataset.get(index, offset, length)


def _change(path: Path, change: Callable[[bytearray], bytearray]) -> None:
    path.write_bytes(change(bytearray(path.read_bytes())))


def _with(offset: int, value: bytes) -> Callable[[bytearray], bytearray]:
    return lambda data: data[:offset] + value + data[offset + len(value) :]


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (".idx", lambda data: data[:-1], "damaged or incomplete"),
        (".idx", lambda data: data + b"\0", "damaged or incomplete"),
        (".idx", lambda data: data[:20], "not an index"),
        (".idx", lambda data: bytearray(), "not an index"),
        (".idx", _with(0, b"TNTIDX\0\0"), "old"),
        (".idx", _with(0, b"X"), "not an index"),
        (".idx", _with(9, b"\2"), "version 2"),
        (".idx", _with(17, b"\6"), "dtype code 6"),
        (".idx", _with(18, b"\xff" * 8), "damaged or incomplete"),
        (".idx", _with(34, b"\x05"), "is not inside|counts 16 tokens"),
        (".idx", _with(34, b"\xff\xff\xff\xff"), "sequence 0 has length -1"),
        (".idx", _with(34 + 16, b"\x01"), "sequence 0 has length 4 at byte 1"),
        (".idx", _with(34 + 48, b"\1"), "document index must rise"),
        (".idx", _with(34 + 48 + 8, b"\3"), "falls in between"),
        (".idx", _with(34 + 48 + 40, b"\3"), "document index must rise"),
        (".bin", lambda data: data[:-1], "no whole number"),
        (".bin", lambda data: data[:-2], "is not inside"),
        (".bin", lambda data: data + b"\0\0", "counts 15 tokens, but .* holds 16"),
        (".bin", lambda data: bytearray(), "is not inside"),
    ],
)
def test_damage_is_found(
    tmp_path: Path, suffix: str, change: Callable[[bytearray], bytearray], message: str
) -> None:
    _write(tmp_path / "a", _DOCUMENTS)
    _change(tmp_path / f"a{suffix}", change)
    with pytest.raises(UserError, match=message):
        IndexedDataset(tmp_path / "a")


def test_missing_files_and_wrong_prefix(tmp_path: Path) -> None:
    _write(tmp_path / "a", _DOCUMENTS)
    with pytest.raises(UserError, match=r"without its ending: .*/a$"):
        IndexedDataset(tmp_path / "a.bin")
    bin_path(tmp_path / "a").unlink()
    with pytest.raises(UserError, match=r"a\.bin: cannot be read"):
        IndexedDataset(tmp_path / "a")


def test_offsets_in_another_order_are_used_as_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path / "a", [[1, 2], [3, 4]])
    offsets = np.array([4, 0], "<i8").tobytes()
    _change(idx_path(tmp_path / "a"), _with(34 + 8, offsets))
    dataset = IndexedDataset(tmp_path / "a")
    assert dataset.get(0).tolist() == [3, 4]
    assert "running sum" in caplog.text


def test_modes_of_multimodal_datasets(tmp_path: Path) -> None:
    assert _write(tmp_path / "a", _DOCUMENTS).sequence_modes is None
    _change(idx_path(tmp_path / "a"), lambda data: data + bytes([0, 1, 1, 0]))
    dataset = IndexedDataset(tmp_path / "a")
    assert dataset.sequence_modes is not None
    assert dataset.sequence_modes.tolist() == [0, 1, 1, 0]


def test_token_dtype_follows_megatron() -> None:
    sizes = (32000, 65499, 65500, 125696)
    assert [token_dtype(size).name for size in sizes] == ["uint16", "uint16", "int32", "int32"]


def _write_and_fail(prefix: Path, checkpoint: bool) -> WriterPosition:
    """Start the dataset of the vectors, fail, and return the position of the checkpoint."""
    position = WriterPosition(0, 0, 0)
    try:
        with IndexedDatasetWriter(prefix, np.dtype("<u2")) as writer:
            writer.add_document([11, 12, 13, 0], [4])
            if checkpoint:
                position = writer.checkpoint()
            writer.add_document([99, 99], [2])
            raise ZeroDivisionError
    except ZeroDivisionError:
        return position


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    _write_and_fail(tmp_path / "a", checkpoint=False)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    dtype = np.dtype("<u2")
    position = _write_and_fail(tmp_path / "a", checkpoint=True)
    assert not idx_path(tmp_path / "a").exists()
    with IndexedDatasetWriter(tmp_path / "a", dtype, continue_from=position) as writer:
        for document in _DOCUMENTS[1:]:
            writer.add_document(document, [len(document)] if document else [])
    assert bin_path(tmp_path / "a").read_bytes().hex() == _BIN_HEX
    index = idx_path(tmp_path / "a").read_bytes()
    assert hashlib.sha256(index).hexdigest() == _SHA256["<u2"][1]


def test_two_writers_of_one_dataset(tmp_path: Path) -> None:
    with (
        IndexedDatasetWriter(tmp_path / "a", np.dtype("<u2")),
        pytest.raises(UserError, match="another process"),
    ):
        IndexedDatasetWriter(tmp_path / "a", np.dtype("<u2"))
