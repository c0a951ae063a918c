"""What a profiled step spent its time on, by kernel.

    python benchmarks/kernel_table.py FOLDER [--rows 30]

FOLDER is what `train_step.py --profile` left for a case, `RUN/profile` of a training with
`--profile-steps`, or any other trace of jax.profiler.
"""

import argparse
from pathlib import Path

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.training.records.kernel_table import kernel_table, read_kernels


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="with a trace of jax.profiler")
    parser.add_argument("--rows", type=positive_int, default=30, help="kernels to list (30)")
    options = parser.parse_args()
    table = kernel_table(read_kernels(options.folder))
    total, idle = table.total, table.idle
    print(f"{1e3 * total:.1f} ms of kernels; the GPU waits for {1e3 * idle:.1f} ms between them")
    if table.exchanging:
        busy, exposed = 1e3 * table.exchanging, 1e3 * table.exposed
        print(f"{busy:.1f} ms of NCCL, {exposed:.1f} ms of it with nothing beside it")
    for purpose, spent in table.purposes.items():
        print(f"{1e3 * spent:8.2f} ms {spent / total:6.1%} {purpose}")
    print()
    for name, spent in list(table.kernels.items())[: options.rows]:
        print(f"{1e3 * spent:8.2f} ms {spent / total:6.1%} {table.calls[name]:5d} x {name}")
    return 0


if __name__ == "__main__":
    run_command_line(main)
