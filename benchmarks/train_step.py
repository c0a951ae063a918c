"""Time the training step against PyTorch on the GPU that is here.

    source tools/launch/environment.sh
    python benchmarks/train_step.py [--only 13b 13b_full] [--steps 8] [--profile FOLDER]

Every case of `train_cases.py` in a process of its own: our step as `dongwu_jax.train` runs it, then
the same step in PyTorch (`torch_peer.py`), after the card's ceiling for a large bfloat16 product.
Prints a JSON line a case:

    tflops_v2, tflops_v3   by Megatron's conventions: full attention, causal attention once
    of_ceiling             tflops_v2 over the ceiling, the one that the card holds for a moment
    peer_tflops_v2, ratio  PyTorch, and ours over it
    gib, compiled_gib      memory at the peak, measured and as compiled
    compile_seconds        with an empty compilation cache
    warm_start_seconds     from starting Python to the end of the first step, with a filled one
                           (--warm-start)

`--plan` prints the peak that `dongwu_jax.plan` foresees for every case instead; it needs no GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_cases import CASES, Case

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.config import RunConfig, parse_config
from dongwu_jax.errors import UserError
from dongwu_jax.models.flops import flops_per_token

_PEER = Path(__file__).with_name("torch_peer.py")


def main(command_line: list[str] | None = None) -> int:
    """Time the cases that were asked for."""
    options = _parse(command_line)
    if options.measure:
        config = parse_config(json.loads(options.measure), "case")
        xla = dict(map(xla_option, options.xla))
        print(json.dumps(_measure(config, options.steps, options.profile, xla)))
        return 0
    names = options.only or list(CASES)
    if options.plan:
        for name in names:
            print(json.dumps({"case": name, "planned_gib": _planned_gib(CASES[name])}), flush=True)
        return 0
    card = {"gpu": _gpu()}
    if not options.without_peer:
        ceilings = _child(str(_PEER), "ceiling")
        card |= {name: round(tera, 1) for name, tera in ceilings.items()}
        print(json.dumps(card), flush=True)
    peers: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            case, profile = CASES[name], options.profile and options.profile / name
            cache = Path(folder) / name
            ours = run_step(case.config(), options.steps, cache, options.xla, profile)
            if options.warm_start and "failed" not in ours:
                again = run_step(case.config(), 1, cache, options.xla)
                ours["warm_start_seconds"] = again.get("first_step_after_seconds")
            peer = json.dumps(case.peer())
            if peer not in peers and not options.without_peer:
                peers[peer] = _child(str(_PEER), peer, str(options.steps))
            figures = _figures(case, ours, peers.get(peer, {}), card.get("ceiling_tflops"))
            print(json.dumps({"case": name} | figures), flush=True)
    return 0


def _parse(command_line: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help="these cases")
    parser.add_argument(
        "--steps", type=positive_int, default=8, help="steps to time, after two to warm up (8)"
    )
    parser.add_argument(
        "--warm-start", action="store_true", help="start every case again with a filled cache"
    )
    parser.add_argument("--without-peer", action="store_true", help="leave PyTorch out")
    parser.add_argument(
        "--profile", type=Path, metavar="FOLDER", help="keep a trace; see kernel_table.py"
    )
    parser.add_argument("--plan", action="store_true", help="print planned memory; needs no GPU")
    parser.add_argument(
        "--xla",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of XLA's for our step, e.g. xla_gpu_enable_triton_gemm=true; repeatable",
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a child: this run, nothing else
    return parser.parse_args(command_line)


def xla_option(text: str) -> tuple[str, str | bool]:
    """NAME=VALUE as JAX takes it."""
    name, _, value = text.partition("=")
    return name, {"true": True, "false": False}.get(value, value)


def _gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"no GPU here: {error}; only --plan needs none") from None


def _planned_gib(case: Case) -> float:
    from dongwu_jax.plan.cluster import find_gpu
    from dongwu_jax.plan.planning import compile_plan, sketch_plan

    plan = compile_plan(sketch_plan(case.config(), find_gpu("h100"), 1), "cuda")
    return round(plan.peak_bytes / 2**30, 2)


def run_step(
    config: RunConfig,
    steps: int,
    cache: Path,
    xla_options: Sequence[str] = (),
    profile: Path | None = None,
) -> dict[str, Any]:
    """Our step in a process of its own: seconds, memory, times of compiling; or why it failed.

    Args:
        cache: folder of JAX's compilation cache.
        xla_options: as NAME=VALUE.
    """
    run = [__file__, "--measure", config.model_dump_json(), "--steps", str(steps)]
    run += [word for option in xla_options for word in ("--xla", option)]
    if profile:
        run += ["--profile", str(profile)]
    return _child(*run, JAX_COMPILATION_CACHE_DIR=str(cache))


def _child(*command: str, **environment: str) -> dict[str, Any]:
    """What another Python prints as its last line, or why it failed."""
    child = subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment | {"DONGWU_STARTED": str(time.time())},
        capture_output=True,
        text=True,
    )
    if child.returncode:
        return {"failed": child.stderr[-1500:]}
    return json.loads(child.stdout.splitlines()[-1])


def _measure(
    config: RunConfig, steps: int, profile: Path | None, xla_options: dict[str, str | bool]
) -> dict[str, Any]:
    """Run the training step on random tokens and the GPU that is here."""
    import jax
    import numpy as np

    from dongwu_jax.parallel.layout import make_sharding
    from dongwu_jax.training.batches import BatchLayout
    from dongwu_jax.training.records.throughput import memory_in_use
    from dongwu_jax.training.state import StartingPoint, initial_state
    from dongwu_jax.training.step import make_objective, make_train_step

    sharding = make_sharding(config, jax.devices()[:1])
    layout = BatchLayout(config, sharding)
    rng = np.random.default_rng(0)
    tokens = rng.integers(config.model.vocab_size, size=layout.shape, dtype=np.int32)
    mask = np.ones(layout.shape, np.float32)
    batch = layout.place({"tokens": tokens, "labels": np.roll(tokens, -1, -1), "loss_mask": mask})
    step = make_train_step(config, sharding, make_objective(config, sharding, "gpu"))
    state = initial_state(config, sharding, StartingPoint())
    started = time.perf_counter()
    compiled = step.lower(state, batch).compile(compiler_options=dict(xla_options))
    compile_seconds, first_step_after = time.perf_counter() - started, 0.0
    for _ in range(2):
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        first_step_after = first_step_after or time.time() - float(os.environ["DONGWU_STARTED"])
    started = time.perf_counter()
    for _ in range(steps):  # one behind the other, as in training
        state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    seconds = (time.perf_counter() - started) / steps
    gib = memory_in_use() / 2**30
    if profile:
        state, metrics = compiled(state, batch)  # or the profiled one would start on a rested card
        with jax.profiler.trace(str(profile)):
            state, metrics = compiled(state, batch)
            jax.block_until_ready(metrics)
    memory = compiled.memory_analysis()
    return {
        "seconds": seconds,
        "gib": gib,
        "compiled_gib": memory.peak_memory_in_bytes / 2**30 if memory else None,
        "compile_seconds": compile_seconds,
        "first_step_after_seconds": first_step_after,
        "loss": float(metrics["loss"]),
    }


def _figures(
    case: Case, ours: dict[str, Any], peer: dict[str, Any], ceiling: float | None
) -> dict[str, Any]:
    """A case's line."""
    config = case.config()
    tokens = config.training.global_batch_size * config.data.sequence_length
    tera = {
        convention: tokens
        * flops_per_token(config.model, config.data.sequence_length, convention)
        / 1e12
        for convention in ("V2", "V3")
    }
    line: dict[str, Any] = {}
    if "seconds" in ours:
        line["tflops_v2"] = tera["V2"] / ours["seconds"]
        line["tflops_v3"] = tera["V3"] / ours["seconds"]
        if ceiling:
            line["of_ceiling"] = line["tflops_v2"] / ceiling
    if "peer_seconds" in peer:
        line["peer_tflops_v2"] = tera["V2"] / peer["peer_seconds"]
        if "seconds" in ours:
            line["ratio"] = peer["peer_seconds"] / ours["seconds"]
    elif "failed" in peer:
        line["peer_failed"] = peer.pop("failed")
    digits = {"of_ceiling": 3, "ratio": 3, "tflops_v2": 1, "tflops_v3": 1, "peer_tflops_v2": 1}
    line |= ours | peer
    return {
        name: round(value, digits.get(name, 4)) if isinstance(value, float) else value
        for name, value in line.items()
    }


if __name__ == "__main__":
    run_command_line(main)
