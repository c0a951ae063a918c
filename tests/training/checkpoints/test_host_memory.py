"""Pinned host memory made ready: on CPUs nothing is, and nothing that goes wrong ends a run."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dongwu_jax.training.checkpoints import host_memory


def test_nothing_to_do_on_cpus_and_the_state_may_go(monkeypatch):
    filled = []
    monkeypatch.setattr(host_memory, "_fill", filled.extend)
    state = {"a": jnp.ones((2, 3))}
    thread = host_memory.make_host_memory_ready(state)
    state["a"].delete()
    thread.join()
    assert filled == []


def test_arrays_of_the_asked_shapes_are_held(monkeypatch, caplog):
    put = []
    device_put = jax.device_put

    def recorded(array, sharding):
        put.append((array.shape, array.dtype, sharding.memory_kind))
        return device_put(array, sharding)

    monkeypatch.setattr(jax, "device_put", recorded)
    shapes = [((2, 3), np.dtype(np.float32)), ((5,), jnp.dtype(jnp.bfloat16))]
    host_memory._fill([(*shape, jax.devices()[0]) for shape in shapes])
    assert put == [(*shape, "pinned_host") for shape in shapes]
    assert not caplog.records


def test_a_failure_is_a_warning(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(jax, "device_put", fail)
    host_memory._fill([((1,), np.dtype(np.float32), jax.devices()[0])])
    assert "no host memory" in caplog.text


def test_the_pool_may_grow_to_most_of_the_hosts_memory(monkeypatch):
    monkeypatch.setattr(host_memory, "_CONTAINER_LIMITS", ())
    environment: dict[str, str] = {}
    host_memory.allow_most_host_memory(environment)
    (limit,) = environment.values()
    kibibytes = int(Path("/proc/meminfo").read_text().split()[1])
    assert int(limit) == int(0.8 * kibibytes) >> 20


@pytest.mark.parametrize(("written", "limit"), [("10737418240", "8"), ("max", None)])
def test_a_container_has_less(tmp_path, monkeypatch, written, limit):
    file = tmp_path / "memory.max"
    file.write_text(f"{written}\n")
    monkeypatch.setattr(host_memory, "_CONTAINER_LIMITS", (tmp_path / "missing", file))
    environment: dict[str, str] = {}
    host_memory.allow_most_host_memory(environment)
    whole: dict[str, str] = {}
    monkeypatch.setattr(host_memory, "_CONTAINER_LIMITS", ())
    host_memory.allow_most_host_memory(whole)
    assert environment == ({host_memory._LIMIT: limit} if limit else whole)


def test_a_limit_that_is_set_wins():
    environment = {"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": "7"}
    host_memory.allow_most_host_memory(environment)
    assert environment == {"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": "7"}
