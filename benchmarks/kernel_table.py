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
    traces = sorted(options.folder.glob("**/*.xplane.pb"))
    if not traces:
        raise UserError(f"{options.folder}: no trace (*.xplane.pb) in it")
    seconds, calls = _kernels(traces[-1])
    total = sum(seconds.values())
    print(f"{1e3 * total:.1f} ms of kernels")
    for name, spent in seconds.most_common(options.rows):
        print(f"{1e3 * spent:8.2f} ms {spent / total:6.1%} {calls[name]:5d} x {name}")
    return 0


def _kernels(trace: Path) -> tuple[Counter[str], Counter[str]]:
    """Seconds and calls of each kernel on the GPU's streams."""
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        if "GPU" not in plane.name:
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                seconds[event.name] += event.duration_ns / 1e9
                calls[event.name] += 1
    return seconds, calls


if __name__ == "__main__":
    run_command_line(main)
