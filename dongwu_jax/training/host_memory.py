"""Pinned host memory for copies of the state, made ready before a checkpoint needs it."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

logger = logging.getLogger(__name__)


@contextmanager
def host_memory_made_ready(state: Any) -> Iterator[None]:
    """Meanwhile let JAX's pool of pinned memory grow until it holds a copy of the state.

    The operating system takes half a second for a gigabyte, which training would stand still for at
    its first checkpoint. The pool keeps what it once had. On CPUs there is nothing to do.
    """
    if jax.default_backend() != "gpu":
        yield
        return
    thread = threading.Thread(target=_copy_to_host, args=(state,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _copy_to_host(state: Any) -> None:
    pinned = jax.tree.map(lambda x: x.sharding.with_memory_kind("pinned_host"), state)
    try:
        jax.block_until_ready(jax.device_put(state, pinned))
    except jax.errors.JaxRuntimeError as error:
        logger.warning("no host memory for a copy of the state, as a checkpoint needs: %s", error)
