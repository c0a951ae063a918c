"""Hold plans against the GPUs that are here: memory at the peak and seconds a step.

    source tools/launch/environment.sh
    python benchmarks/plan_check.py [--only fsdp tensor] [--layers 4] [--steps 4]

Layers of 13B (5120/13824, 4096 tokens, vocabulary 32,000) on all GPUs of this machine, each layout
in a process of its own: the step runs, and is planned meanwhile as `python -m dongwu_jax.plan`
does. Prints a JSON line a layout: GiB and seconds, planned and measured (`compiled_gib`: by the
program that ran), and the shares of a step in which the first GPU exchanges something, and in which
it does nothing else.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dongwu_jax.command_line import run_command_line
from dongwu_jax.config import RunConfig, overlay, parse_config
from dongwu_jax.errors import UserError
from dongwu_jax.plan.cluster import GPUS, Gpu
from dongwu_jax.plan.deviceless import Backend
from dongwu_jax.plan.planning import Plan, compile_plan, sketch_plan

_SETTINGS: dict[str, dict[str, Any]] = {
    "model": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_heads": 40,
        "max_position_embeddings": 4096,
    },
    "data": {"sequence_length": 4096},
    "training": {"micro_batch_size": 2, "duration": 10, "remat": "minimal"},
}


def main(command_line: list[str] | None = None) -> int:
    """Plan and run each layout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=_layouts(2), help="these layouts")
    parser.add_argument("--layers", type=int, default=4, help="of the model (default 4)")
    parser.add_argument(
        "--steps", type=int, default=4, help="steps to time, after one to warm up (4)"
    )
    parser.add_argument("--xla", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a child: this run, and nothing else
    options = parser.parse_args(command_line)
    if options.measure:
        from train_step import xla_option

        config = parse_config(json.loads(options.measure), "run")
        print(json.dumps(_measure(config, options.steps, dict(map(xla_option, options.xla)))))
        return 0
    count, kind = gpus_here()
    for name in options.only or _layouts(count):
        config = layout_config(name, count, options.layers)
        case = {"layout": name, "gpus": count, "gpu": kind, "layers": options.layers}
        print(json.dumps(case | compare(config, kind, count, options.steps)), flush=True)
    return 0


def _layouts(count: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Every axis over all GPUs, by name."""
    zero1 = {"rules": {"embed": ["fsdp", "context", "data", "pipe"]}}
    rounds = {"pipeline_micro_batches": 4 * count, "micro_batch_size": 1, "remat": "attention"}
    return {
        "zero1": {"mesh": {"data": count}, "sharding": zero1},
        "fsdp": {"mesh": {"fsdp": count}},
        "fsdp_attention": {"mesh": {"fsdp": count}, "training": {"remat": "attention"}},
        "tensor": {"mesh": {"tensor": count}},
        "ulysses": {"mesh": {"context": count}},
        "ring": {"mesh": {"context": count}, "sharding": {"context_attention": "ring"}},
        "pipe": {"mesh": {"pipe": count}, "training": rounds},
        "pipe_virtual": {"mesh": {"pipe": count}, "training": rounds | {"virtual_stages": 2}},
    }


def layout_config(name: str, count: int, layers: int) -> RunConfig:
    """The run of a layout on so many GPUs."""
    size = {"model": {"num_layers": layers}, "training": {"global_batch_size": 8 * count}}
    sections = overlay(overlay(_SETTINGS, size), _layouts(count)[name])
    return parse_config(sections, f"layout {name}")


def gpus_here() -> tuple[int, str]:
    """How many GPUs this machine has, and which."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"no GPU here: {error}") from None
    return len(told.splitlines()), told.splitlines()[0]


def known_gpu(kind: str) -> Gpu:
    """The GPU that plans know by this name of nvidia-smi's, else an H100."""
    return {gpu.device_kind: gpu for gpu in GPUS.values()}.get(kind, GPUS["h100"])


def compare(
    config: RunConfig,
    kind: str,
    count: int,
    steps: int,
    environment: Mapping[str, str] | None = None,
    xla_options: Sequence[str] = (),
) -> dict[str, Any]:
    """A run's step planned, and measured in a process of its own.

    Args:
        kind: of the GPUs, as nvidia-smi names them; what no plan knows is planned as an H100.
        count: GPUs of the run, the first of this machine.
        environment: of that process beyond this one's; JAX_PLATFORMS=cpu for a rehearsal on virtual
            devices, whose plan is that of the CPU backend.
        xla_options: for the measured step, as NAME=VALUE.
    """
    gpus = {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}
    environment = os.environ | gpus | (environment or {})
    gpu = known_gpu(kind)
    backend: Backend = "cpu" if environment["JAX_PLATFORMS"] == "cpu" else "cuda"
    run = [sys.executable, __file__, "--measure", config.model_dump_json(), "--steps", str(steps)]
    run += [word for option in xla_options for word in ("--xla", option)]
    plan, child = plan_beside(run, environment, sketch_plan(config, gpu, count), backend)
    planned: dict[str, Any] = {
        "planned_for": gpu.key,
        "planned_gib": round(plan.peak_bytes / 2**30, 2),
        "closed_form_gib": round(plan.estimate.total / 2**30, 2),
        "planned_seconds": round(plan.step_time.total, 3),
    }
    if child.returncode:
        return planned | {"failed": child.stderr[-2000:]}
    measured = json.loads(child.stdout.splitlines()[-1])
    memory = plan.peak_bytes / 2**30 / measured["gib"] - 1
    pace = plan.step_time.total / measured["seconds"] - 1
    off = {"memory_off": round(memory, 3), "seconds_off": round(pace, 3)}
    return planned | measured | off


def plan_beside(
    command: Sequence[str], environment: Mapping[str, str], sketch: Plan, backend: Backend
) -> tuple[Plan, subprocess.CompletedProcess[str]]:
    """Compile a plan while a command runs that has the GPUs."""
    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(
            subprocess.run, command, env=environment, capture_output=True, text=True
        )
        return compile_plan(sketch, backend), running.result()


def _measure(config: RunConfig, steps: int, xla_options: dict[str, str | bool]) -> dict[str, Any]:
    """Run the training step on random tokens and the GPUs that are here."""
    import jax
    import numpy as np

    from dongwu_jax.models.flops import flops_per_token
    from dongwu_jax.parallel.layout import make_sharding
    from dongwu_jax.training.batches import BatchLayout
    from dongwu_jax.training.records.kernel_table import communication, read_kernels
    from dongwu_jax.training.records.throughput import memory_in_use
    from dongwu_jax.training.state import StartingPoint, initial_state
    from dongwu_jax.training.step import make_objective, make_train_step

    sharding = make_sharding(config, jax.devices())
    layout = BatchLayout(config, sharding)
    rng = np.random.default_rng(0)
    tokens = rng.integers(config.model.vocab_size, size=layout.shape, dtype=np.int32)
    mask = np.ones(layout.shape, np.float32)
    batch = layout.place({"tokens": tokens, "labels": tokens, "loss_mask": mask})
    platform = jax.devices()[0].platform
    step = make_train_step(config, sharding, make_objective(config, sharding, platform))
    state = initial_state(config, sharding, StartingPoint())
    started = time.perf_counter()
    compiled = step.lower(state, batch).compile(compiler_options=dict(xla_options))
    compile_seconds = time.perf_counter() - started
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - started)
    busy = exposed = 0.0
    if platform == "gpu":  # a trace of a rehearsal has no kernels
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                state, metrics = compiled(state, batch)
                jax.block_until_ready(metrics)
            busy, exposed = communication(read_kernels(Path(folder)))
    memory = compiled.memory_analysis()
    took, length = float(np.median(seconds[1:])), config.data.sequence_length
    tokens_a_gpu = config.training.global_batch_size * length / len(jax.devices())
    flops = tokens_a_gpu * flops_per_token(config.model, length, "V2")
    return {
        "gib": round(memory_in_use() / 2**30, 2),
        "compiled_gib": round(memory.peak_memory_in_bytes / 2**30, 2) if memory else None,
        "seconds": round(took, 3),
        "tflops": round(flops / took / 1e12),
        "communication": round(busy / took, 3),
        "exposed_communication": round(exposed / took, 3),
        "compile_seconds": round(compile_seconds, 1),
        "loss": round(float(metrics["loss"]), 4),
    }


if __name__ == "__main__":
    run_command_line(main)
