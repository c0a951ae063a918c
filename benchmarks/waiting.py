"""What a step would wait for: its batch, and the copy of the state that a checkpoint needs.

    python benchmarks/waiting.py input [--tokens-per-second 1000000] [--steps 20]
    python benchmarks/waiting.py checkpoint [--gigabytes 10] [--folder runs]

`input` reads a dataset of random tokens with the product's loader at the given pace and prints the
share of time spent waiting for it. `checkpoint` saves a training state of the given size as a run
does, once with nothing written before and once more, and prints how long training would stand still
and how long the writing goes on beside it; before them, how long host memory takes to be made ready
for it, which a run does while it compiles.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.config import RunConfig, parse_config

_LENGTH, _BATCH = 4096, 256


def main() -> int:
    """Measure one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("input", "checkpoint"), help="to measure")
    parser.add_argument(
        "--tokens-per-second",
        type=positive_int,
        default=1_000_000,
        help="that the devices would train (default 1000000)",
    )
    parser.add_argument(
        "--steps", type=positive_int, default=20, help="of the measured run (default 20)"
    )
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of state (10)")
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.what == "input":
            figures = _input(Path(folder), options.tokens_per_second, options.steps)
        else:
            figures = _checkpoint(Path(folder), options.gigabytes)
    print(json.dumps(figures))
    return 0


def _input(folder: Path, tokens_per_second: int, steps: int) -> dict[str, Any]:
    from dongwu_jax.data.datasets import build_datasets
    from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter
    from dongwu_jax.data.loader import BatchLoader

    rng = np.random.default_rng(0)
    with IndexedDatasetWriter(folder / "random", np.dtype(np.uint16)) as writer:
        for _ in range(2 * steps * _BATCH * _LENGTH // 2**16 + 1):
            writer.add_document(rng.integers(32000, size=2**16, dtype=np.uint16), [2**16])
    config = _run({"data": {"blend": str(folder / "random"), "split": "100,0,0"}}, steps)
    data = config.data
    datasets = build_datasets(data, steps * _BATCH, 0, vocab_size=config.model.vocab_size)
    loader = BatchLoader(
        datasets.train,
        global_batch_size=_BATCH,
        accumulation_steps=1,
        rows=range(_BATCH),
        eod_token=data.eod_token,
        eod_mask_loss=data.eod_mask_loss,
        start_step=0,
        stop_step=steps,
        prefetch=data.prefetch,
    )
    pace, waited, started = _BATCH * _LENGTH / tokens_per_second, 0.0, 0.0
    for step in range(steps):
        asked = time.perf_counter()
        next(loader)
        if step == 0:  # nothing could be read ahead of the first
            started = time.perf_counter()
        else:
            waited += time.perf_counter() - asked
        time.sleep(pace)  # the device works
    seconds = time.perf_counter() - started
    loader.close()
    return {
        "tokens_per_second": round(steps * _BATCH * _LENGTH / seconds),
        "waited_share": round(waited / seconds, 5),
    }


def _checkpoint(folder: Path, gigabytes: float) -> dict[str, Any]:
    import jax

    from dongwu_jax.models.parameters import parameter_count
    from dongwu_jax.parallel.layout import make_sharding
    from dongwu_jax.training.checkpoints.host_memory import (
        allow_most_host_memory,
        make_host_memory_ready,
    )
    from dongwu_jax.training.checkpoints.store import Checkpoints
    from dongwu_jax.training.state import StartingPoint, TrainState, initial_state

    allow_most_host_memory(os.environ)
    layers = max(1, round((gigabytes * 1e9 / 12 - 2 * 32000 * 4096) / 202e6))
    model = {"num_layers": layers, "hidden_size": 4096, "intermediate_size": 11008, "num_heads": 32}
    config = _run({"model": model, "checkpoint": {"directory": str(folder / "checkpoints")}}, 10)
    state = initial_state(config, make_sharding(config, jax.devices()[:1]), StartingPoint())
    jax.block_until_ready(state)
    started = time.perf_counter()
    make_host_memory_ready(state).join()
    host_memory_seconds = time.perf_counter() - started
    checkpoints = Checkpoints(config.checkpoint)
    figures: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "gigabytes": round(12 * parameter_count(state.parameters) / 1e9, 2),
        "disk_free_gigabytes": shutil.disk_usage(folder).free // 10**9,
        "host_memory_seconds": round(host_memory_seconds, 2),
    }
    for step, name in enumerate(("first", "again"), start=1):
        now = TrainState(jax.numpy.int32(step), state.parameters, state.optimizer_state)
        started = time.perf_counter()
        checkpoints.save(now, config, {}, ())
        stalled = time.perf_counter() - started
        checkpoints.wait()
        figures[f"stalled_seconds_{name}"] = round(stalled, 2)
        figures[f"written_seconds_{name}"] = round(time.perf_counter() - started, 2)
    checkpoints.close()
    return figures


def _run(sections: dict[str, Any], steps: int) -> RunConfig:
    sections = {
        "model": {"max_position_embeddings": _LENGTH},
        "training": {"global_batch_size": _BATCH, "duration": steps},
    } | sections
    sections["model"] = {"max_position_embeddings": _LENGTH} | sections["model"]
    return parse_config(sections, "benchmark")


if __name__ == "__main__":
    run_command_line(main)
