"""Hold plans for several GPUs against what one GPU of their kind compiles.

    python benchmarks/compiled_peak.py --gpus 4 --only 13b_tensor 13b_pipe [--xla NAME=VALUE]

The GPU that is here stands for all (`jax_mock_gpu_topology`): XLA compiles the step of a case of
`multigpu_cases.py` with all that it asks of a device, and nothing runs. Prints a JSON line a case:
GiB at the peak as compiled here and as `python -m dongwu_jax.plan` foresees it.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from multigpu_cases import cases
from plan_check import gpus_here, known_gpu, plan_beside
from train_step import xla_option

from dongwu_jax.command_line import run_command_line
from dongwu_jax.config import RunConfig, parse_config
from dongwu_jax.errors import UserError
from dongwu_jax.plan.planning import sketch_plan

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cuda",
    "CUDA_VISIBLE_DEVICES": "0",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",  # the scheduler works with what there is
    # Else it waits for its share of the kernels from hosts that are not there.
    "XLA_FLAGS": "--xla_gpu_shard_autotuning=false",
}


def main(command_line: list[str] | None = None) -> int:
    """Compile each case here and plan it meanwhile."""
    options = _parse(command_line)
    if options.compile:
        gpus, sections = json.loads(options.compile)
        config = parse_config(sections, "case")
        print(json.dumps(_compile(config, gpus, dict(map(xla_option, options.xla)))))
        return 0
    _, kind = gpus_here()
    known = cases(options.gpus)
    for name in options.only or known:
        if name not in known:
            raise UserError(f"--only {name}: not among {', '.join(known)}")
        count = 1 if known[name].one_gpu else options.gpus
        case = {"case": name, "gpus": count, "gpu": kind}
        config = known[name].config(options.gpus)
        print(json.dumps(case | _both(config, kind, count, options.xla)), flush=True)
    return 0


def _parse(command_line: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpus", type=int, choices=(2, 4, 8), default=4, help="that one stands for (4)"
    )
    parser.add_argument("--only", nargs="+", metavar="CASE", help="these cases")
    parser.add_argument(
        "--xla",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of XLA's for what is compiled here; repeatable",
    )
    parser.add_argument("--compile", help=argparse.SUPPRESS)  # a child: one case
    return parser.parse_args(command_line)


def _both(config: RunConfig, kind: str, gpus: int, xla_options: Sequence[str]) -> dict[str, Any]:
    child = json.dumps([gpus, config.model_dump(mode="json")])
    run = [sys.executable, __file__, "--compile", child]
    run += [word for option in xla_options for word in ("--xla", option)]
    gpu = known_gpu(kind)
    sketch = sketch_plan(config, gpu, gpus)
    plan, compiled = plan_beside(run, os.environ | _ENVIRONMENT, sketch, "cuda")
    planned = {"planned_for": gpu.key, "planned_gib": round(plan.peak_bytes / 2**30, 2)}
    if compiled.returncode:
        return planned | {"failed": compiled.stderr[-2000:]}
    return planned | json.loads(compiled.stdout.splitlines()[-1])


def _compile(config: RunConfig, gpus: int, xla_options: dict[str, str | bool]) -> dict[str, Any]:
    """The step for so many hosts of one GPU each; what connects them is nothing to the compiler."""
    import jax

    jax.config.update("jax_mock_gpu_topology", f"1x{gpus}x1")
    from dongwu_jax.parallel.layout import make_sharding
    from dongwu_jax.plan.compile_worker import lower_step

    lowered = lower_step(config, make_sharding(config, jax.devices()), "gpu")
    memory = lowered.compile(compiler_options=dict(xla_options)).memory_analysis()
    assert memory is not None  # every GPU has it
    return {"compiled_gib": round(memory.peak_memory_in_bytes / 2**30, 2)}


if __name__ == "__main__":
    run_command_line(main)
