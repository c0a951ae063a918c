"""Several engines on one host: a process for each, and one that hands out the parts."""

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from dongwu_jax.distill.synthesis.parts import Part
from dongwu_jax.distill.synthesis.progress import SynthesisProgress
from dongwu_jax.distill.synthesis.worker import Work, run_worker
from dongwu_jax.errors import UserError

_LOOK_SECONDS = 1.0  # between two looks whether all engines live
_END_SECONDS = 20.0  # for an engine to end by itself; a scheduler gives about 30


def visible_devices(engines: int, tensor_parallel: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each engine: its share of those that this process may use.

    Raises:
        UserError: there are too few.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if engines == 1:
        return [None]
    needed = engines * tensor_parallel
    devices = visible.split(",") if visible else [str(number) for number in range(needed)]
    if len(devices) < needed:
        raise UserError(
            f"--data-parallel {engines} x --tensor-parallel {tensor_parallel}: needs {needed} GPUs,"
            f" CUDA_VISIBLE_DEVICES={visible} names {len(devices)}"
        )
    starts = range(0, needed, tensor_parallel)
    return [",".join(devices[start : start + tensor_parallel]) for start in starts]


def run_engines(
    work: Work, devices: Sequence[str | None], parts: Iterable[Part], progress: SynthesisProgress
) -> None:
    """Run parts with one engine for each entry of `devices`; a free one gets the next part.

    However this ends, all processes that the engines started have ended, too.

    Raises:
        UserError: an engine failed or was killed.
    """
    context = multiprocessing.get_context("spawn")
    engines: dict[Connection, BaseProcess] = {}
    try:
        for visible in devices:
            ours, theirs = context.Pipe()
            process = context.Process(target=run_worker, args=(work, visible, theirs))
            process.start()
            theirs.close()
            engines[ours] = process
        _hand_out(deque(parts), engines, progress)
        for engine in engines.values():
            engine.join(_END_SECONDS)  # vLLM gives back shared memory
    finally:
        _end(engines.values())


def _hand_out(
    parts: deque[Part], engines: dict[Connection, BaseProcess], progress: SynthesisProgress
) -> None:
    working = dict(engines)
    while working:
        for pipe in wait(list(working), _LOOK_SECONDS):
            assert isinstance(pipe, Connection)
            try:
                kind, *content = pipe.recv()
                if kind == "next":
                    pipe.send(parts.popleft() if parts else None)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise _lost(working[pipe]) from None
            if kind == "ready":
                progress.start()
            elif kind == "counts":
                progress.add(content[0])
            elif kind == "failed":
                raise UserError(content[0])
            elif kind == "done":
                del working[pipe]
        for pipe, process in working.items():
            # Not only by the pipe's end: processes of vLLM may hold the other end open.
            if process.exitcode is not None and not pipe.poll():
                raise _lost(process)


def _lost(process: BaseProcess) -> UserError:
    process.join(_LOOK_SECONDS)
    return UserError(
        f"an engine (process {process.pid}) ended with exit code {process.exitcode}; its messages "
        "above say why. The same command goes on with what is missing"
    )


def _end(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_END_SECONDS)
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it, if it hangs, and what it left behind
        process.join()
