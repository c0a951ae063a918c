"""The process that compiles: a request as JSON on stdin, the answer as the last line of stdout.

Started by `compiling.py` in the environment that `deviceless.py` makes.
"""

import json
import sys
import time
from dataclasses import asdict, replace
from typing import Any

import jax

from dongwu_jax.config import RunConfig, parse_config
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.parallel.sharding import LogicalSharding
from dongwu_jax.plan.cluster import find_gpu
from dongwu_jax.plan.compiler_warnings import compile_quietly
from dongwu_jax.plan.deviceless import Backend, target_devices
from dongwu_jax.plan.hlo import CollectiveTotal, read_collectives, summarize_collectives
from dongwu_jax.training.batches import BatchLayout
from dongwu_jax.training.state import abstract_state
from dongwu_jax.training.step import make_objective, make_train_step

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")


def main() -> None:
    """Compile what stdin asks for."""
    request = json.load(sys.stdin)
    config = parse_config(request["config"], source="the planned run")
    try:
        answer = _compile(config, request["gpu"], request["devices"], request["backend"])
    except UserError as error:
        answer = {"user_error": str(error)}
    except jax.errors.JaxRuntimeError as error:
        if not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        answer = {"does_not_fit": str(error).splitlines()[0]}
    print(json.dumps(answer))


def _compile(config: RunConfig, gpu: str, device_count: int, backend: Backend) -> dict[str, Any]:
    """The fields of a `CompiledStep`."""
    devices = target_devices(backend, find_gpu(gpu), device_count)
    sharding = make_sharding(config, devices)
    started = time.perf_counter()
    lowered = lower_step(config, sharding, "gpu" if backend == "cuda" else "cpu")
    compiled, complaints = compile_quietly(lowered)
    seconds = time.perf_counter() - started
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None  # every backend that we compile for has both
    assert memory is not None
    collectives = read_collectives(text, sharding.mesh)
    totals = summarize_collectives(collectives)
    if backend == "cpu":
        totals = [_as_on_gpu(total, config) for total in totals]
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return {
        "jax_version": jax.__version__,
        "seconds": seconds,
        "argument_bytes": arguments,
        "temporary_bytes": temporary,
        # XLA:CPU reports no peak.
        "peak_bytes": memory.peak_memory_in_bytes if backend == "cuda" else arguments + temporary,
        "collectives": [asdict(total) for total in totals],
        "loops_known": all(collective.calls_known for collective in collectives),
        "complaints": complaints,
    }


def lower_step(config: RunConfig, sharding: LogicalSharding, platform: str) -> jax.stages.Lowered:
    """The training step of a run as it is handed to the compiler; there are no arrays."""
    step = make_train_step(config, sharding, make_objective(config, sharding, platform))
    return step.lower(abstract_state(config, sharding), BatchLayout(config, sharding).abstract())


def _as_on_gpu(total: CollectiveTotal, config: RunConfig) -> CollectiveTotal:
    """XLA:CPU exchanges bfloat16 as float32; a GPU sends it as it is.

    All but sums of gradients, those not over `tensor`, is in the dtype of computation.
    """
    sums = total.kind in ("all-reduce", "reduce-scatter") and "tensor" not in total.axes
    precision = config.precision
    dtype = precision.grad_reduce_dtype if sums else precision.compute_dtype
    if total.dtype != "f32" or dtype != "bfloat16":
        return total
    return replace(
        total,
        dtype="bf16",
        operand_bytes=total.operand_bytes // 2,
        result_bytes=total.result_bytes // 2,
        wire_bytes=total.wire_bytes // 2,
    )


if __name__ == "__main__":
    main()
