"""Writing and reading the state of a model that lies on all GPUs.

    python benchmarks/multigpu_checkpoint.py GPUS FOLDER [--layers N] [--rehearse]
                                                                       (multigpu.py calls it)

13B, as many layers as `multigpu_cases.py` puts on so many GPUs of 80 GB, or N. Prints a JSON line
when all is written (gigabytes of the state and on disk, how long training stands still, until all
is written, until it has checksums), and another when a second process has read it back.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from multigpu_cases import cases

from dongwu_jax.command_line import positive_int
from dongwu_jax.config import RunConfig, overlay, parse_config
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.training.checkpoints.folders import METADATA
from dongwu_jax.training.checkpoints.host_memory import (
    allow_most_host_memory,
    make_host_memory_ready,
)
from dongwu_jax.training.checkpoints.store import Checkpoints
from dongwu_jax.training.state import StartingPoint, TrainState, abstract_state, initial_state


def main() -> int:
    """Write in one process, read in another: the memory of GPUs belongs to who took it first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gpus", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=positive_int, metavar="N", help="of the model")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model")
    parser.add_argument("--only", choices=("write", "read"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is None:
        return _both()
    allow_most_host_memory(os.environ)
    case = replace(cases(options.gpus)["13b_fsdp"], layers=options.layers)
    config = case.config(options.gpus, options.rehearse)
    place = {"checkpoint": {"directory": str(options.folder / "checkpoints")}}
    config = parse_config(overlay(config.model_dump(mode="json"), place), "checkpoint")
    print(json.dumps(_read(config) if options.only == "read" else _write(config)))
    return 0


def _both() -> int:
    figures: dict[str, Any] = {}
    for part in ("write", "read"):
        command = [sys.executable, *sys.argv, "--only", part]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            print(json.dumps(figures | {"failed": part, "error": child.stderr[-2000:]}))
            return 1
        figures |= json.loads(child.stdout.splitlines()[-1])
        if part == "read":
            figures["equal"] = figures["sum_written"] == figures["sum_read"]
        print(json.dumps(figures), flush=True)
    return 0


def _write(config: RunConfig) -> dict[str, Any]:
    sharding = make_sharding(config, jax.devices())
    state = _as_if_trained(initial_state(config, sharding, StartingPoint()))
    jax.block_until_ready(state)
    make_host_memory_ready(state).join()
    checkpoints = Checkpoints(config.checkpoint)
    folder = checkpoints.directory / "1"
    started = time.time_ns()
    checkpoints.save(state, config, {}, ())
    stalled = time.time_ns()
    checkpoints.wait()
    checked = time.time_ns()
    written = json.loads((folder / METADATA).read_text())["commit_timestamp_nsecs"]
    figures = {
        "gigabytes": round(sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9, 2),
        "on_disk_gigabytes": round(_bytes_in(folder) / 1e9, 2),
        "layers": config.model.num_layers,
        "stalled_seconds": round((stalled - started) / 1e9, 2),
        "written_seconds": round((written - started) / 1e9, 2),
        "with_checksums_seconds": round((checked - started) / 1e9, 2),
        "sum_written": checksum(state),
    }
    checkpoints.close()
    return figures


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _read(config: RunConfig) -> dict[str, Any]:
    abstract = abstract_state(config, make_sharding(config, jax.devices()))
    checkpoints = Checkpoints(config.checkpoint)
    started = time.perf_counter()
    state, _ = checkpoints.restore(abstract)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - started
    checkpoints.close()
    return {"read_seconds": round(seconds, 2), "sum_read": checksum(state)}


def _as_if_trained(state: TrainState) -> TrainState:
    """With moments that are not zero: zeros take no room on disk, and losing them shows nowhere."""
    leaves, tree = jax.tree.flatten(state.optimizer_state)

    def filled(leaves: list[jax.Array]) -> list[jax.Array]:
        return [
            jax.random.normal(jax.random.key(number), leaf.shape, leaf.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
            for number, leaf in enumerate(leaves)
        ]

    shardings = [leaf.sharding for leaf in leaves]
    moments = jax.jit(filled, donate_argnums=0, out_shardings=shardings)(leaves)
    return replace(state, step=jnp.int32(1), optimizer_state=jax.tree.unflatten(tree, moments))


def checksum(state: Any) -> int:
    """Of every bit, its place and its array; the same in whatever order it is added up."""

    @jax.jit  # one program: many at once can starve one another on virtual devices
    def total(leaves: list[jax.Array]) -> jax.Array:
        return sum(
            (_weighted_bits(leaf, number) for number, leaf in enumerate(leaves)), jnp.uint32(0)
        )

    return int(total(jax.tree.leaves(state)))


def _weighted_bits(leaf: jax.Array, number: int) -> jax.Array:
    """Words of the leaf, each times an odd number that its place gives it, modulo 2^32."""
    weights = jnp.uint32(2 * number + 1)
    for axis in range(leaf.ndim):
        place = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        weights = (weights + 2 * place) * jnp.uint32(2 * axis + 0x9E3779B1)
    word = {2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)
    return jnp.sum(words * weights, dtype=jnp.uint32)


if __name__ == "__main__":
    sys.exit(main())
