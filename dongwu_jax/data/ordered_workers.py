"""Work spread over processes, results in the order of the input, memory bounded."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from dongwu_jax.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 3  # items in flight per worker: one being worked on, the others waiting

_work: Callable[[Any], Any]  # in a worker process, what its `make_work` made


def ordered_map(
    make_work: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Apply a function to items in `workers` processes and yield results in order.

    Close the generator when leaving it early: that ends the processes.

    Args:
        make_work: called once in every process, gives the function; must be picklable.
        items: read only a few ahead of the results that were taken.
        workers: number of processes; 1 works in this process.

    Raises:
        UserError: a worker process died, as when the machine runs out of memory.
    """
    if workers == 1:
        yield from map(make_work(), items)
        return
    # spawn: a forked child would inherit locks and files of this process
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (make_work,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_do_work, item))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, perhaps for lack of memory; run again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(make_work: Callable[[], Callable[[Any], Any]]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _work = make_work()


def _exit_with_parent() -> None:
    """End this process when its parent is gone, however it ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _do_work(item: Any) -> Any:
    return _work(item)
