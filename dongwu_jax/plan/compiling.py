"""Compiling a run's training step in a process of its own, and what is learnt from it.

A process of its own, because JAX takes flags and virtual devices from the environment when it is
imported, and so that what XLA logs can be read.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from dongwu_jax.config import RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.plan.cluster import Gpu
from dongwu_jax.plan.deviceless import Backend, environment
from dongwu_jax.plan.hlo import CollectiveTotal

_KILLED = (-9, 137)


class DoesNotFit(Exception):
    """The compiler found that the program needs more memory than there is."""


@dataclass(frozen=True)
class CompiledStep:
    """The compiled training step; bytes are of one device."""

    backend: Backend
    jax_version: str
    seconds: float  # tracing and compiling
    argument_bytes: int  # state and batch
    temporary_bytes: int
    peak_bytes: int
    collectives: list[CollectiveTotal]
    loops_known: bool  # False: a loop of unknown length was counted as one round
    complaints: list[str]  # arrays that the partitioner had to replicate


def compile_step(config: RunConfig, gpu: Gpu, device_count: int, backend: Backend) -> CompiledStep:
    """Compile the training step of a run for `device_count` GPUs.

    For virtual CPU devices, two shallow models stand for a deep one: collectives grow by the same
    with every layer. Memory on a GPU does not, because the scheduler works with what is free.

    Raises:
        DoesNotFit: the compiler ran out of the GPU's memory.
        UserError: the run is impossible on this many devices, or this machine is too small.
        RuntimeError: the compiler failed otherwise.
    """
    pieces = config.mesh_shape(device_count)["pipe"] * config.training.virtual_stages
    shallow, deeper = (2, 3) if pieces == 1 else (pieces, 2 * pieces)
    if backend == "cuda" or config.model.num_layers <= deeper:
        return _compile(config, gpu, device_count, backend)
    first = _compile(_with_layers(config, shallow), gpu, device_count, backend)
    second = _compile(_with_layers(config, deeper), gpu, device_count, backend)
    times = (config.model.num_layers - shallow) / (deeper - shallow)
    return extrapolate(first, second, times)


def extrapolate(shallow: CompiledStep, deeper: CompiledStep, times: float) -> CompiledStep:
    """The step of a model that is `times` the difference of two deeper than the first."""

    def grown(before: int, after: int) -> int:
        return round(before + times * (after - before))

    def key(total: CollectiveTotal) -> tuple[str, tuple[str, ...], str]:
        return total.kind, total.axes, total.dtype

    before = {key(total): total for total in shallow.collectives}
    collectives = [
        CollectiveTotal(
            *key(total),
            *(
                grown(getattr(before[key(total)], name) if key(total) in before else 0, after)
                for name, after in list(asdict(total).items())[3:]
            ),
        )
        for total in deeper.collectives
    ]
    return CompiledStep(
        backend=deeper.backend,
        jax_version=deeper.jax_version,
        seconds=shallow.seconds + deeper.seconds,
        argument_bytes=grown(shallow.argument_bytes, deeper.argument_bytes),
        temporary_bytes=grown(shallow.temporary_bytes, deeper.temporary_bytes),
        peak_bytes=grown(shallow.peak_bytes, deeper.peak_bytes),
        collectives=sorted(collectives, key=lambda total: -total.wire_bytes),
        loops_known=deeper.loops_known,
        complaints=deeper.complaints,
    )


def _with_layers(config: RunConfig, layers: int) -> RunConfig:
    return config.model_copy(
        update={"model": config.model.model_copy(update={"num_layers": layers})}
    )


def _compile(config: RunConfig, gpu: Gpu, device_count: int, backend: Backend) -> CompiledStep:
    """Compile this very run in a process of its own."""
    request = {
        "config": config.model_dump(mode="json"),
        "gpu": gpu.key,
        "devices": device_count,
        "backend": backend,
    }
    process = subprocess.run(
        [sys.executable, "-m", "dongwu_jax.plan.compile_worker"],
        input=json.dumps(request),
        env=environment(backend, device_count),
        capture_output=True,
        text=True,
    )
    if process.returncode in _KILLED:
        raise UserError("the compiler was killed: it needs more memory than this machine has")
    if process.returncode:
        raise RuntimeError(f"the compiler failed:\n{process.stderr[-4000:]}")
    return _read_answer(json.loads(process.stdout.splitlines()[-1]), backend)


def _read_answer(answer: dict[str, Any], backend: Backend) -> CompiledStep:
    """What the worker printed, or the error it met."""
    if "does_not_fit" in answer:
        raise DoesNotFit(answer["does_not_fit"])
    if "user_error" in answer:
        raise UserError(answer["user_error"])
    totals = [
        CollectiveTotal(**(total | {"axes": tuple(total["axes"])}))
        for total in answer.pop("collectives")
    ]
    return CompiledStep(backend=backend, collectives=totals, **answer)
