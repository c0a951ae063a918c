"""Weights alone: streamed in and out, bit-equal in every format, readable by Orbax as ever."""

from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import run_config

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.checkpoint_target import CheckpointTarget
from dongwu_jax.interop.targets import DTYPES
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.models.parameters import abstract_parameters, named_parameters
from dongwu_jax.training.checkpoints import streamed_weights
from dongwu_jax.training.checkpoints.store import Checkpoints
from dongwu_jax.training.checkpoints.stored_weights import WeightReader, save_weights
from dongwu_jax.training.checkpoints.streamed_weights import (
    ArrayReader,
    UnreadArray,
    unread_arrays_handler,
)
from dongwu_jax.training.state import TrainState

CONFIG = ModelConfig(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=56,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    qkv_bias=True,
)


def weights(dtype: str = "bfloat16") -> dict[str, np.ndarray]:
    """Random values in the memory order of a torch file; a bias is zero."""
    rng = np.random.default_rng(0)
    made = {
        tensor.name: tensor.from_torch(rng.normal(size=tensor.torch_shape).astype(DTYPES[dtype]))
        for tensor in model_tensors(CONFIG)
    }
    made["layers.0.attention.q_bias"][:] = 0
    return made


def save(folder: Path, values: dict[str, np.ndarray], dtype: str) -> Path:
    folder.mkdir()
    CheckpointTarget(CONFIG, dtype).write(folder, values.__getitem__, lambda num_bytes: None)
    return folder


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_stored_as_it_came(tmp_path, dtype):
    values = weights(dtype)
    reader = WeightReader(save(tmp_path / "model", values, dtype))
    assert (reader.dtype, reader.iteration, reader.consumed_samples) == (dtype, 0, None)
    assert reader.run.model == CONFIG
    assert set(reader) == set(values)
    for name, value in reader.items():
        assert value.dtype == DTYPES[dtype]
        assert value.tobytes() == values[name].tobytes()
        assert value.strides == values[name].strides, f"{name} was transposed"


def test_orbax_restores_it_on_a_mesh(tmp_path):
    """As training does with checkpoints of its own: float32, sharded."""
    values = weights()
    folder = save(tmp_path / "model", values, "bfloat16")
    mesh = jax.make_mesh((8,), ("fsdp",))
    sharding = jax.NamedSharding(mesh, jax.P(None))
    wanted = {
        name: jax.ShapeDtypeStruct(
            value.shape,
            np.float32,
            sharding=jax.NamedSharding(mesh, jax.P("fsdp")) if value.shape[0] == 32 else sharding,
        )
        for name, value in values.items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder.absolute() / "0" / "parameters", wanted)
    for name, value in values.items():
        assert restored[name].sharding == wanted[name].sharding
        np.testing.assert_array_equal(restored[name], value.astype(np.float32))


def test_one_tensor_at_a_time(tmp_path):
    """The next is read when the one before it lies on the disk."""
    values, events = weights(), []

    def read(name: str) -> np.ndarray:
        events.append(name)
        return values[name]

    save_weights(tmp_path, CONFIG, DTYPES["bfloat16"], read, [], events.append)
    names = events[::2]
    assert sorted(names) == sorted(values)
    assert events[1::2] == [values[name].nbytes for name in names]


def test_an_error_of_the_source_comes_through(tmp_path):
    values = weights("float32")
    values["lm_head"][3, 5] = 1e6
    with pytest.raises(UserError, match="lm_head: 1e.06 is too large for float16"):
        save(tmp_path / "model", values, "float16")
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        WeightReader(tmp_path / "model")


def test_a_checkpoint_of_a_run(tmp_path):
    run = run_config(tmp_path)
    random = np.random.default_rng(0)
    parameters = jax.tree.map(
        lambda leaf: jax.numpy.asarray(random.normal(size=leaf.shape), leaf.dtype),
        abstract_parameters(run.model),
    )
    checkpoints = Checkpoints(run.checkpoint)
    state = TrainState(jax.numpy.int32(10), parameters, {"count": jax.numpy.int32(10)})
    checkpoints.save(state, run, {"consumed_samples": 160}, [])
    checkpoints.close()
    reader = WeightReader(run.checkpoint.directory)
    assert (reader.dtype, reader.iteration, reader.consumed_samples) == ("float32", 10, 160)
    for name, value in named_parameters(parameters).items():
        np.testing.assert_array_equal(reader[name], value)


@pytest.mark.parametrize("damage", ["missing", "short", "long", "no array"])
def test_damaged_files(tmp_path, damage):
    folder = save(tmp_path / "model", weights(), "bfloat16")
    array = folder / "0" / "parameters" / "layers.0.attention.q_bias"
    file = next(path for path in (array / "c").rglob("*") if path.is_file())
    reader = WeightReader(folder)
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "long":
        file.write_bytes(file.read_bytes() + b"0")
    else:
        (array / "zarr.json").unlink()
    with pytest.raises(UserError, match=r"model/0: is damaged or incomplete: .*q_bias"):
        reader["layers.0.attention.q_bias"]


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_shape_order_and_dtype(tmp_path_factory, data):
    """Also in chunks that do not divide it, and when every value is zero."""
    shape = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    order = data.draw(st.permutations(range(len(shape))))
    dtype = data.draw(st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]))
    chunk_bytes = data.draw(st.integers(1, 200))
    values = np.zeros(shape, dtype)
    if data.draw(st.booleans()):
        values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    values = values.transpose(order)
    folder = tmp_path_factory.mktemp("arrays") / "parameters"
    item = {"a.b": UnreadArray(values.shape, values.dtype, lambda: values, lambda num_bytes: None)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed_weights, "_CHUNK_BYTES", chunk_bytes)
        with ocp.Checkpointer(unread_arrays_handler()) as checkpointer:
            checkpointer.save(folder, args=ocp.args.PyTreeSave(item))
    found = ArrayReader(folder).read("a.b")
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    assert found.tobytes() == values.tobytes()
    files = [path for path in (folder / "a.b" / "c").rglob("*") if path.is_file()]
    axes = zip(values.shape, values.strides, strict=True)
    one_row = max((stride for size, stride in axes if size > 1), default=values.itemsize)
    assert max(file.stat().st_size for file in files) <= chunk_bytes + one_row
