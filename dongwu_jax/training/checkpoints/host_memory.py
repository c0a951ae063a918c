"""Pinned host memory for copies of the state, made ready before a checkpoint needs it."""

import logging
import os
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

logger = logging.getLogger(__name__)

_LIMIT, _SHARE = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", 0.8
_CONTAINER_LIMITS = (  # of Linux control groups, version 2 and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def allow_most_host_memory(environment: MutableMapping[str, str]) -> None:
    """Let the pool of pinned memory grow to most of this host's memory; call before JAX starts.

    XLA stops at 64 GB, less than one process of eight GPUs needs for a checkpoint of 13B (156 GB),
    and more than a small container has. A limit that is set already wins.
    """
    environment.setdefault(_LIMIT, str(max(1, int(_SHARE * _memory_bytes()) >> 30)))


def _memory_bytes() -> int:
    """What this process may use: of the host, or of its container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _CONTAINER_LIMITS:
        text = file.read_text().strip() if file.is_file() else "max"
        total = min(total, int(text)) if text.isdigit() else total
    return total


def make_host_memory_ready(state: Any) -> threading.Thread:
    """Let JAX's pool of pinned memory grow, beside everything else, until it holds such a state.

    The operating system takes up to a second for a gigabyte, for which training would stand still
    at its first checkpoint. The pool keeps what it once had. On CPUs there is nothing to do.

    Args:
        state: arrays, of which this process's parts count; only shapes are taken, so that it may be
            given away at once.
    """
    shards = [
        (leaf.sharding.shard_shape(leaf.shape), leaf.dtype, device)
        for leaf in jax.tree.leaves(state)
        for device in leaf.sharding.addressable_devices
        if device.platform == "gpu"
    ]
    # No daemon: the interpreter must not end while a thread is inside the driver.
    thread = threading.Thread(target=_fill, args=(shards,))
    thread.start()
    return thread


def _fill(shards: list[tuple[tuple[int, ...], np.dtype, jax.Device]]) -> None:
    """Hold an array of each kind at once, then let go of all; stop when the run has ended."""
    held: list[jax.Array] = []
    try:
        for shape, dtype, device in shards:
            if not threading.main_thread().is_alive():
                return
            pinned = SingleDeviceSharding(device, memory_kind="pinned_host")
            held.append(jax.block_until_ready(jax.device_put(np.empty(shape, dtype), pinned)))
    except Exception as error:  # whatever it is, training goes on without
        logger.warning("no host memory for a copy of the state, as a checkpoint needs: %s", error)
