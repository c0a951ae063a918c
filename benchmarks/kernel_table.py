"""What a profiled step spent its time on, by kernel.

    python benchmarks/kernel_table.py FOLDER [--rows 30]

FOLDER is what `train_step.py --profile` left for a case, or any trace of jax.profiler.
"""

import argparse
from collections import Counter
from pathlib import Path

import jax

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.errors import UserError


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=positive_int, default=30, help="kernels to list (30)")
    options = parser.parse_args()
    events = read_kernels(options.folder)
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for name, start, end in events:
        seconds[name] += end - start
        calls[name] += 1
    total, idle = sum(seconds.values()), _idle(events)
    print(f"{1e3 * total:.1f} ms of kernels; the GPU waits for {1e3 * idle:.1f} ms between them")
    busy, exposed = communication(events)
    if busy:
        print(f"{1e3 * busy:.1f} ms of NCCL, {1e3 * exposed:.1f} ms of it with nothing beside it")
    for purpose, spent in by_purpose(events).most_common():
        print(f"{1e3 * spent:8.2f} ms {spent / total:6.1%} {purpose}")
    print()
    for name, spent in seconds.most_common(options.rows):
        print(f"{1e3 * spent:8.2f} ms {spent / total:6.1%} {calls[name]:5d} x {name}")
    return 0


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
Kernel = tuple[str, float, float]
"""Name, start and end in seconds."""


def read_kernels(folder: Path) -> list[Kernel]:
    """What ran on the first GPU's streams in the newest trace, in the order in which it began.

    Raises:
        UserError: there is no trace.
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
    return sorted(events, key=lambda event: event[1])


def by_purpose(events: list[Kernel]) -> Counter[str]:
    """Seconds of kernels: matrix products, attention, exchanges, everything else."""
    seconds: Counter[str] = Counter()
    for name, start, end in events:
        parts = (part for part in _PURPOSES if part in name.lower())
        seconds[_PURPOSES.get(next(parts, ""), "everything else")] += end - start
    return seconds


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


if __name__ == "__main__":
    run_command_line(main)
