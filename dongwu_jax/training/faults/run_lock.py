"""One run at a time in a folder: two would destroy each other's checkpoints and metrics.

The lock is the system's and goes with the process that holds it, however that ends; the file stays
and tells whose it was last. POSIX locks are those that NFS has, too.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import jax
from jax._src import distributed  # JAX has no public way to its key-value store

from dongwu_jax.config import RunConfig
from dongwu_jax.errors import UserError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
# What the run before this one may take to end: launchers start the next one soon.
_PATIENCE_SECONDS = 60.0
_SECONDS_BETWEEN_TRIES = 0.5
_KEY = "dongwu_jax/run_is_locked"
_LONGEST_MILLISECONDS = 86_400_000  # a day: what stands still is ended by the watchdog before

Lock = IO[bytes]
"""Holds as long as the file is open. A process is not locked out by itself."""


def lock_run(config: RunConfig, began: float) -> list[Lock]:
    """Keep other runs out of this one's folders; where the file system has no locks, that is said.

    A collective operation: the first process takes the locks, and the others wait for it.

    Args:
        began: when this run began, in seconds since the epoch.

    Raises:
        UserError: another run is at work in one of them, and does not end within a minute.
    """
    if jax.process_index() > 0:
        # Not in a collective, which may not have the patience.
        _store().blocking_key_value_get(_KEY, _LONGEST_MILLISECONDS)
        return []
    folders = {"checkpoint.directory": config.checkpoint.directory}
    if config.log_directory.absolute() != config.checkpoint.directory.absolute():
        folders["logging.directory"] = config.log_directory
    locks = [_lock(setting, folder, began) for setting, folder in folders.items()]
    if jax.process_count() > 1:
        _store().key_value_set(_KEY, "locked", allow_overwrite=True)
    return [lock for lock in locks if lock is not None]


def _store() -> Any:
    """Of keys and values, which all processes of the run share."""
    return distributed.global_state.client


def _lock(setting: str, folder: Path, began: float) -> Lock | None:
    lock = _open(folder)
    if lock is None:
        return None
    try:
        _wait_for(lock, setting, folder)
    except OSError as error:
        _say_unlocked(folder, error)
        return None
    _sign(lock, began)
    return lock


def _open(folder: Path) -> Lock | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK_FILE).open("ab", buffering=0)
    except OSError as error:
        # Of a folder that cannot be written, whoever first writes there says so.
        if os.access(folder, os.W_OK):
            _say_unlocked(folder, error)
        return None


def _wait_for(lock: Lock, setting: str, folder: Path) -> None:
    deadline, said = time.monotonic() + _PATIENCE_SECONDS, False
    while not _taken(lock):
        other = _holder(folder)
        if time.monotonic() >= deadline:
            raise UserError(
                f"{setting}={folder}: another run is at work there, {other}, and two would destroy "
                "each other's checkpoints and metrics; wait for it, end it, or choose another "
                "folder"
            )
        if not said:
            logger.warning(
                "%s: another run is at work there, %s; waiting up to %.0f s for it to end",
                *(folder, other, _PATIENCE_SECONDS),
            )
        said = True
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _taken(lock: Lock) -> bool:
    """Whether the lock is this process's now.

    Raises:
        OSError: there are no locks here.
    """
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True


def _sign(lock: Lock, began: float) -> None:
    """Write down whose the lock is."""
    utc = datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds")
    record = {"host": socket.gethostname(), "pid": os.getpid(), "began": utc}
    with contextlib.suppress(OSError):  # a full disk
        lock.truncate(0)
        lock.write(json.dumps(record).encode() + b"\n")


def _holder(folder: Path) -> str:
    try:
        record = json.loads((folder / LOCK_FILE).read_bytes())
        return f"process {record['pid']} on {record['host']}, begun {record['began']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has not told its name"


def _say_unlocked(folder: Path, error: OSError) -> None:
    logger.warning(
        "%s: cannot be locked: %s; see to it that no other run is at work there", folder, error
    )
