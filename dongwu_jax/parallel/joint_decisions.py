"""What all processes of a run must decide alike, whatever each of them sees."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dongwu_jax.errors import UserError

Result = TypeVar("Result")


def all_succeed(action: Callable[[], Result]) -> Result:
    """What `action` gives here, if it succeeds in every process; a collective operation.

    Raises:
        UserError: it raised one here, or in another process, whose message says why.
    """
    failure = None
    try:
        result = action()
    except UserError as error:
        failure = error
    failures = sum_over_processes(int(failure is not None))
    if failure is not None:
        raise failure
    if failures:
        raise UserError("another process of this run refuses to go on; its message says why")
    return result


def of_first_process(number: int) -> int:
    """The number that process 0 has: a shared file system may not show all the same at once."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def sum_over_processes(number: int) -> int:
    """The numbers of all processes, added up."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).sum())
