"""Safetensors files against the safetensors library, and every way in which one can be damaged."""

import contextlib
import io
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dongwu_jax.errors import UserError
from dongwu_jax.interop.safetensors_files import SafetensorsWriter, read_safetensors
from dongwu_jax.interop.targets import DTYPES

_SHAPES = arrays.array_shapes(min_dims=0, min_side=0, max_side=5)
_KINDS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.uint8, bool]
_NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__")


@st.composite
def _tensors(draw, kinds):
    def array():
        shape, kind = draw(_SHAPES), np.dtype(draw(st.sampled_from(kinds)))
        values = draw(st.binary(min_size=int(np.prod(shape)) * 8, max_size=400 * 8))
        raw = np.frombuffer(values, np.uint8)[: int(np.prod(shape)) * kind.itemsize]
        return (raw % 2 if kind.kind == "b" else raw).view(kind).reshape(shape)

    return {name: array() for name in draw(st.lists(_NAMES, unique=True, max_size=4))}


@given(_tensors(_KINDS))
def test_reads_what_the_library_writes(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("st") / "model.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    found = read_safetensors(path)
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        read = found[name].read()
        assert (found[name].shape, found[name].dtype) == (values.shape, values.dtype)
        assert (read.shape, read.dtype) == (values.shape, values.dtype)
        assert read.tobytes() == values.tobytes()
        assert read.flags.c_contiguous
        assert read.flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_the_library_reads_what_we_write(tmp_path_factory, dtype, data):
    tensors = data.draw(_tensors([DTYPES[dtype]]))
    path = tmp_path_factory.mktemp("st") / "model.safetensors"
    file = io.BytesIO()
    writer = SafetensorsWriter(file, [(name, v.shape) for name, v in tensors.items()], dtype)
    for values in tensors.values():
        writer.write(values.copy(order="F"))
    writer.close()
    path.write_bytes(file.getvalue())
    found = safetensors.numpy.load_file(path)
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        assert found[name].tobytes() == values.tobytes()


def test_a_writer_refuses_other_tensors_than_announced():
    writer = SafetensorsWriter(io.BytesIO(), [("a", (2,)), ("b", (3,))], "float32")
    with pytest.raises(ValueError, match="was announced"):
        writer.write(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="never written"):
        writer.close()


def _entry(start=0, stop=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def _file(header, data=b"12345678"):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not fit"),
        (b"1234", "does not fit"),
        (b"\xff" * 8 + b"{}", "does not fit"),
        (_file({"a": _entry()})[:20], "does not fit"),
        (_file(b"nothing"), "not JSON"),
        (_file(b"\xff\xfe"), "not JSON"),
        (_file(b"[" * 100_000), "not JSON"),
        (_file(b"[]"), "not a JSON object"),
        (_file(b'{"a":1,"a":2}'), "'a' stands twice"),
        (_file({"a": None}), "tensor a has dtype None"),
        (_file({"a": _entry(dtype="F4")}), "tensor a has dtype 'F4'"),
        (_file({"a": _entry(dtype=["F32"])}), "tensor a has dtype"),
        (_file({"a": _entry(shape=(-2, -1))}), "tensor a has shape"),
        (_file({"a": _entry(shape=(2.0,))}), "tensor a has shape"),
        (_file({"a": _entry() | {"data_offsets": [0]}}), "data_offsets"),
        (_file({"a": _entry(shape=(3,))}), r"tensor a has 8 bytes, shape \(3,\) of F32 needs 12"),
        (_file({"a": _entry(8, 0)}), "tensor a has -8 bytes"),
        (_file({"a": _entry(shape=(10**18,), stop=4 * 10**18)}), "copy it again"),
        (_file({"a": _entry(), "b": _entry()}), "tensor b starts at byte"),
        (_file({"a": _entry(4, 12)}), "tensor a starts at byte"),
        (_file({"a": _entry()}, b"1234567"), "copy it again"),
        (_file({"a": _entry()}, b"123456789"), "copy it again"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_safetensors(path)
    assert str(error.value).startswith(f"{path}: is not a whole safetensors file")


def test_a_file_that_shrinks_or_goes_is_explained(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(_file({"a": _entry()}))
    array = read_safetensors(path)["a"]
    path.write_bytes(_file({"a": _entry()})[:-3])
    with pytest.raises(UserError, match="tensor a ends after 5 of 8 bytes"):
        array.read()
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        array.read()
    with pytest.raises(UserError, match="No such file"):
        read_safetensors(path)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_never_crash(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("st") / "model.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        read_safetensors(path)
