"""Joining the processes of a multi-host run, and staying together."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dongwu_jax.errors import UserError
from dongwu_jax.parallel.cluster_detection import Cluster
from dongwu_jax.parallel.lifelines import KeyValueStore, Lifelines
from dongwu_jax.parallel.roll_call import Attendance, call_roll, describe_hosts

logger = logging.getLogger(__name__)

# After which JAX gives up a process whose threads no longer run, e.g. a stopped one. A process 0
# like that is noticed by `lifelines`, which must be faster: JAX takes from half of this on.
_HEARTBEAT_SECONDS = 100
_SHUTDOWN_SECONDS = 300


@contextmanager
def joined(cluster: Cluster | None, timeout_seconds: float) -> Iterator[Lifelines | None]:
    """Be one of the processes of a run; when one fails, all end with a message.

    Gives the lines to the other processes; None: it is alone.

    Args:
        cluster: this process's place; None: it is alone, and nothing is done.
        timeout_seconds: how long to wait for all processes.

    Raises:
        UserError: the processes do not come together.
    """
    if cluster is None:
        yield None
        return
    logger.info(describe(cluster))
    started = time.perf_counter()
    attendance = call_roll(cluster, timeout_seconds)
    lifelines = Lifelines(cluster.process_id, attendance)
    try:
        lifelines.ask_process_0(_initialize(cluster, timeout_seconds))
        _report_all_here(attendance, time.perf_counter() - started)
        yield lifelines
    except (Exception, KeyboardInterrupt) as error:
        lifelines.fail(error)
    lifelines.finish()


def describe(cluster: Cluster) -> str:
    """What was decided, in one line."""
    devices = "all that it can see"
    if cluster.local_device_ids is not None:
        devices = ", ".join(str(each) for each in cluster.local_device_ids)
    return (
        f"process {cluster.process_id} of {cluster.num_processes} on {socket.gethostname()}, "
        f"coordinator {cluster.coordinator_address}, local devices: {devices} "
        f"(from {cluster.source})"
    )


def initialization_timeout(seconds: float | None) -> float:
    """How long processes wait for each other at the start, in seconds; 300 unless said otherwise.

    Raises:
        UserError: the time, or JAX_DISTRIBUTED_INITIALIZATION_TIMEOUT, is not above 0.
    """
    name, text = "--initialization-timeout", str(seconds)
    if seconds is None:
        name = "JAX_DISTRIBUTED_INITIALIZATION_TIMEOUT"
        text = os.environ.get(name) or "300"
    try:
        chosen = float(text)
    except ValueError:
        chosen = 0.0
    if not 0 < chosen < 1e6:
        raise UserError(f"{name}={text}: must be a number of seconds above 0")
    return chosen


def _initialize(cluster: Cluster, timeout_seconds: float) -> KeyValueStore:
    """Connect JAX; returns the store that all processes share."""
    # Only now: importing JAX takes seconds, in which a process may already be missed.
    import jax
    from jax._src import distributed  # JAX has no public way to its key-value store

    # JAX's service for preemption would swallow SIGTERM; without it the signal ends the process.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        cluster.coordinator_address,
        num_processes=cluster.num_processes,
        process_id=cluster.process_id,
        local_device_ids=cluster.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout_seconds) + 1,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
    _log_as(cluster.process_id)
    assert distributed.global_state.client is not None
    return distributed.global_state.client


def _report_all_here(attendance: Attendance, seconds: float) -> None:
    import jax

    logger.info(
        "all %d processes are here after %.1f s: %s; %d devices",
        jax.process_count(),
        seconds,
        describe_hosts(attendance.hosts),
        jax.device_count(),
    )


def _log_as(process_id: int) -> None:
    """Process 0 reports the run; the others only what is wrong, with their number."""
    if process_id == 0:
        return
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in root.handlers:
        handler.setFormatter(logging.Formatter(f"process {process_id}: %(message)s"))
