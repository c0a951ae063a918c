"""What a trace of jax.profiler spent its time on, by kernel."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dongwu_jax.errors import UserError

# Parts of kernels' names, the first that is found; the rest are element-wise, sums and copies.
_PURPOSES = {
    "nccl": "exchanges",
    "sdpa": "attention",
    "flash": "attention",
    "cudnn": "attention",
    "nvjet": "matrix products",
    "gemm": "matrix products",
    "cutlass": "matrix products",
}
_LISTED = 60
Kernel = tuple[str, float, float]
"""Name, start and end in seconds."""


def read_kernels(folder: Path) -> list[Kernel]:
    """What ran on the first GPU's streams in the newest trace, in the order in which it began.

    Raises:
        UserError: there is no trace, or no GPU in it.
    """
    traces = sorted(folder.glob("**/*.xplane.pb"))
    if not traces:
        raise UserError(f"{folder}: no trace (*.xplane.pb) in it")
    planes = jax.profiler.ProfileData.from_file(str(traces[-1])).planes
    gpus = sorted((plane for plane in planes if "GPU" in plane.name), key=lambda gpu: gpu.name)
    events = [
        (event.name, event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9)
        for gpu in gpus[:1]
        for line in gpu.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]
    if not events:
        raise UserError(f"{traces[-1]}: no kernel of a GPU in it")
    return sorted(events, key=lambda event: event[1])


@dataclass(frozen=True)
class KernelTable:
    """Seconds of kernels; by name and by purpose, the longest first.

    Attributes:
        total: of all kernels, those that run at the same time added up.
        elapsed: from the first kernel to the last.
        idle: in which no stream did anything.
        exchanging, exposed: in which NCCL ran, and in which it alone did.
        purposes: matrix products, attention, exchanges, everything else.
        kernels, calls: by name.
    """

    total: float
    elapsed: float
    idle: float
    exchanging: float
    exposed: float
    purposes: dict[str, float]
    kernels: dict[str, float]
    calls: Counter[str]


def kernel_table(events: list[Kernel]) -> KernelTable:
    """Add up what `read_kernels` gave."""
    kernels: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for name, start, end in events:
        kernels[name] += end - start
        calls[name] += 1
    exchanging, exposed = communication(events)
    return KernelTable(
        total=sum(kernels.values()),
        elapsed=max(end for _, _, end in events) - events[0][1],
        idle=_idle(events),
        exchanging=exchanging,
        exposed=exposed,
        purposes=by_purpose(events),
        kernels=_longest_first(kernels),
        calls=calls,
    )


def as_record(table: KernelTable, steps: int) -> dict[str, Any]:
    """The table as milliseconds and calls a step, for a file."""
    each = 1e3 / steps
    return {
        "total_ms": table.total * each,
        "elapsed_ms": table.elapsed * each,
        "idle_ms": table.idle * each,
        "exchanging_ms": table.exchanging * each,
        "exposed_ms": table.exposed * each,
        "purposes": [[name, spent * each] for name, spent in table.purposes.items()],
        "kernels": [
            [name, spent * each, table.calls[name] / steps]
            for name, spent in list(table.kernels.items())[:_LISTED]
        ],
        "kernels_in_all": len(table.kernels),
    }


def by_purpose(events: list[Kernel]) -> dict[str, float]:
    """Seconds of kernels: matrix products, attention, exchanges, everything else."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for name, start, end in events:
        parts = (part for part in _PURPOSES if part in name.lower())
        seconds[_PURPOSES.get(next(parts, ""), "everything else")] += end - start
    return _longest_first(seconds)


def _longest_first(seconds: dict[str, float]) -> dict[str, float]:
    return dict(sorted(seconds.items(), key=lambda entry: -entry[1]))


def communication(events: list[Kernel]) -> tuple[float, float]:
    """Seconds in which a kernel of NCCL runs, and those of them in which no other kernel does."""
    edges = [
        (when, "nccl" in name.lower(), change)
        for name, start, end in events
        for when, change in ((start, 1), (end, -1))
    ]
    busy, exposed, before = 0.0, 0.0, 0.0
    running = {True: 0, False: 0}  # kernels of NCCL, others
    for when, of_nccl, change in sorted(edges):
        if running[True]:
            busy += when - before
            exposed += 0.0 if running[False] else when - before
        running[of_nccl] += change
        before = when
    return busy, exposed


def _idle(events: list[Kernel]) -> float:
    """Seconds in which no stream did anything, from the first kernel to the last."""
    idle, busy_until = 0.0, events[0][1]
    for _, start, end in events:
        idle += max(0.0, start - busy_until)
        busy_until = max(busy_until, end)
    return idle
