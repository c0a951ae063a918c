"""Measure the pipeline's bubble: the share of its work that is idle ticks.

Example:
    python benchmarks/pipeline_bubble.py [--stages 4] [--virtual-stages 1 2]

On virtual CPU devices, which here share one core, an idle tick costs what a working one does. So
the time of a forward and backward pass grows with the ticks, v * M + P - 1 for M micro batches, and
its part that does not grow with M is the bubble. Prints a JSON line a case: the bubble by formula,
and as measured from the time of M micro batches and the time that each further one adds (a line
through all numbers of micro batches). Other work on the machine shows in the figures.
"""

import argparse
import json
import os
import resource
import sys
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if hasattr(os, "sched_setaffinity"):  # Linux; threads on several cores would overlap unevenly
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from dongwu_jax.parallel import pipeline
from dongwu_jax.parallel.mesh import MANUAL_AXES, MESH_AXES, make_mesh
from dongwu_jax.parallel.sharding import LogicalSharding, local_to, resolve_rules

WIDTH, ROWS, LAYERS_OF_A_PIECE = 512, 256, 2


def main(command_line: list[str] | None = None) -> int:
    """Time each number of micro batches for each number of virtual stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stages", type=int, default=4, help="of the pipeline, one a device (default 4)"
    )
    parser.add_argument(
        "--virtual-stages",
        type=int,
        nargs="+",
        default=[1, 2],
        help="model chunks a stage (default 1 2)",
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help="steps to time; the fastest counts (default 7)"
    )
    options = parser.parse_args(command_line)
    for virtual_stages in options.virtual_stages:
        counts = [options.stages * factor for factor in (1, 2, 3, 4)]
        programs = [_program(options.stages, virtual_stages, count) for count in counts]
        seconds = _times(programs, options.repeats)
        marginal = float(np.polyfit(counts, seconds, 1)[0])  # what a further micro batch costs
        for count, took in zip(counts, seconds, strict=True):
            schedule = pipeline.Schedule(options.stages, virtual_stages, count)
            case = {
                "stages": options.stages,
                "virtual_stages": virtual_stages,
                "micro_batches": count,
                "seconds": round(took, 4),
                "bubble": round(schedule.bubble, 3),
                "measured": round(1 - marginal * count / took, 3),
            }
            print(json.dumps(case), flush=True)
    return 0


def _times(programs: list[Callable[[], None]], repeats: int) -> list[float]:
    """Least seconds of each, taking turns so that all see the same machine.

    Of the processor in user mode: clearing fresh memory pages is the system's, and grows with M.
    """
    seconds: list[list[float]] = [[] for _ in programs]
    for _ in range(repeats):
        for program, times in zip(programs, seconds, strict=True):
            started = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            program()
            times.append(resource.getrusage(resource.RUSAGE_SELF).ru_utime - started)
    return [min(times) for times in seconds]


def _program(stages: int, virtual_stages: int, count: int) -> Callable[[], None]:
    """A compiled forward and backward pass of a chain of layers, ready to run."""
    shape = dict.fromkeys(MESH_AXES, 1) | {"pipe": stages}
    sharding = LogicalSharding(make_mesh(shape, jax.devices()[:stages]), resolve_rules({}))
    schedule = pipeline.Schedule(stages, virtual_stages, count)

    def stage(layers: list[jax.Array], x: jax.Array) -> jax.Array:
        for weight in layers:
            x = jnp.tanh(x @ weight)
        return x

    def local(weights: jax.Array, inputs: jax.Array) -> jax.Array:
        with local_to(sharding):
            outputs, kept = pipeline.run_forward_keeping(stage, weights[0], (), inputs, schedule)
            return pipeline.run_backward(weights[0], kept, outputs, schedule)[0][None]

    rng = np.random.default_rng(0)
    weights = rng.normal(size=(stages, virtual_stages, LAYERS_OF_A_PIECE, WIDTH, WIDTH)) / 20
    inputs = jnp.asarray(rng.normal(size=(count, 1, ROWS, WIDTH)), jnp.float32)
    mapped = jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(PartitionSpec("pipe"), PartitionSpec()),
        out_specs=PartitionSpec("pipe"),
        axis_names={*MANUAL_AXES},
        check_vma=False,
    )
    arguments = jnp.asarray(weights, jnp.float32), inputs
    compiled = jax.jit(mapped).lower(*arguments).compile()
    compiled(*arguments)
    return lambda: jax.block_until_ready(compiled(*arguments))


if __name__ == "__main__":
    sys.exit(main())
