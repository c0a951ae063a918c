"""Plan a run before a GPU is rented: memory, communication and speed, from its compiled step.

Example:
    python -m dongwu_jax.plan --config configs/13b_h100.yaml --devices 8 --gpu h100
"""

import argparse
import functools
import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.config import RunConfig, load_config
from dongwu_jax.errors import UserError

_WANTED = 4  # layouts that a search finds, unless it is told otherwise


def main(arguments: list[str] | None = None) -> int:
    """Plan, or search, and print."""
    options = _parse(arguments)
    config = _planned_run(load_config(options.config, options.overrides))
    if options.search:
        _search(config, options)
    else:
        _plan(config, options)
    return 0


def _plan(config: RunConfig, options: argparse.Namespace) -> None:
    # Only now: importing JAX takes seconds, and --help should not.
    from dongwu_jax.plan.cluster import find_gpu
    from dongwu_jax.plan.deviceless import choose_backend
    from dongwu_jax.plan.planning import compile_plan, sketch_plan
    from dongwu_jax.plan.record import plan_as_json
    from dongwu_jax.plan.report import print_plan

    backend, gpu = choose_backend(options.backend), find_gpu(options.gpu)
    sketch = sketch_plan(config, gpu, options.devices, _network(options))
    with _progress() as progress:
        progress.add_task(f"compiling for {options.devices} devices ({backend})", total=None)
        plan = compile_plan(sketch, backend)
    if options.json:
        print(json.dumps(plan_as_json(plan), indent=2))
    else:
        print_plan(plan, _console())


def _search(config: RunConfig, options: argparse.Namespace) -> None:
    from dongwu_jax.plan.cluster import find_gpu
    from dongwu_jax.plan.deviceless import choose_backend
    from dongwu_jax.plan.layout_search import (
        compile_best,
        layout_overrides,
        most_compiled,
        sketch_layouts,
    )
    from dongwu_jax.plan.planning import Plan
    from dongwu_jax.plan.record import plan_as_json
    from dongwu_jax.plan.report import print_ranking

    backend, gpu = choose_backend(options.backend), find_gpu(options.gpu)
    wanted = options.compile or _WANTED
    with _progress() as progress:
        task = progress.add_task("sketching layouts", total=None)
        sketches = sketch_layouts(config, gpu, options.devices, _network(options))
        if not sketches:
            raise UserError(
                f"no layout of {options.devices} {gpu.name} fits or divides; take more GPUs, a "
                "shorter data.sequence_length or a training.global_batch_size with more divisors"
            )
        progress.update(task, description="compiling layouts", total=wanted)
        say = functools.partial(progress.console.print, highlight=False, soft_wrap=True)
        say(
            f"{len(sketches)} layouts may fit; compiling until {wanted} do, at most "
            f"{most_compiled(wanted)}"
        )

        def done(plan: Plan) -> None:
            progress.advance(task, 1 if plan.fits else 0)
            verdict = "fits" if plan.fits else "does not fit"
            say(f"compiled, {verdict}:", *layout_overrides(plan.config))

        plans = compile_best(sketches, wanted, backend, done)
    if options.json:
        print(json.dumps([plan_as_json(plan) for plan in plans], indent=2))
    else:
        print_ranking(plans, len(sketches), _console())


def _planned_run(config: RunConfig) -> RunConfig:
    """The run with its model complete; weights themselves are not read.

    Raises:
        UserError: the model comes with weights that are not here and the run does not describe it.
    """
    if config.lora.rank:
        raise UserError(
            f"lora.rank={config.lora.rank}: the plan knows no adapters yet; with lora.rank=null it "
            "plans the training of all weights, which needs more of everything"
        )
    origin = config.training.initial_weights or config.training.continue_from
    if origin is None:
        return config
    if Path(origin).exists():
        from dongwu_jax.interop.initial_weights import resolve_initial_weights

        config = resolve_initial_weights(config)[0]
    elif not config.model.model_fields_set:
        raise UserError(
            f"the model comes with {origin}, which is not here; describe it: model.hidden_size=..."
        )
    started = config.training.model_copy(update={"initial_weights": None, "continue_from": None})
    return config.model_copy(update={"training": started})


def _network(options: argparse.Namespace) -> float | None:
    """Bytes/s from gigabits/s."""
    return None if options.network is None else options.network * 1e9 / 8


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _console() -> Console:
    """Stdout; as wide as the tables need where it is not a terminal."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dongwu_jax.plan",
        description="Memory, communication and speed of a run on GPUs that are not there: its "
        "training step is compiled for them. Needs no data, tokenizer or weights.",
        epilog="example: python -m dongwu_jax.plan --config configs/13b_h100.yaml --devices 8 "
        "--gpu h100 training.remat=attention. With the extra `plan` the step is compiled for the "
        "GPU itself, without it for virtual CPU devices.",
    )
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument("--devices", required=True, type=positive_int, help="number of GPUs")
    parser.add_argument(
        "--gpu",
        default="h100",
        help="h100 or a100, both of 80 GB, or h200, of 141 GB (default h100)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="what to compile for: the GPU (cuda, exact memory) or virtual CPU devices (cpu); "
        "auto: cuda where JAX's CUDA plugin is installed",
    )
    parser.add_argument(
        "--network",
        type=positive_int,
        metavar="GBIT",
        help="gigabits/s of network for each GPU, where a cluster differs from the usual 400 "
        "(h100, h200) and 200 (a100)",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes, remat policies and micro batches; compile the best and rank them; a "
        "deep pipeline takes minutes to compile, and there may be 3 N of them (see --compile)",
    )
    parser.add_argument(
        "--compile",
        type=positive_int,
        metavar="N",
        help=f"with --search: compile layouts until N of them fit, at most 3 N (default {_WANTED})",
    )
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.field=value",
        help="settings that win over the file",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.compile is not None and not options.search:
        parser.error("--compile: only with --search; a plan of one layout always compiles it")
    return options


if __name__ == "__main__":
    run_command_line(main)
