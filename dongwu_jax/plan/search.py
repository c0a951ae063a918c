"""Trying layouts: all that divide by closed form, the best few by compiling them."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from dongwu_jax.config import RunConfig, parse_config
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.mesh import MESH_AXES
from dongwu_jax.plan.cluster import GPUS_PER_HOST, Gpu
from dongwu_jax.plan.deviceless import Backend
from dongwu_jax.plan.planning import Plan, compile_plan, sketch_plan

REMAT_POLICIES = ("none", "minimal", "qkv_attention", "attention", "full")
_MICRO_BATCH_SIZES = (1, 2, 4, 8)
# The closed form is not exact: what it finds slightly too large may fit.
_TOLERANCE = 1.1
# Attention over shards of a shorter sequence is not worth its messages.
_SHORTEST_SHARD = 2048


def sketch_layouts(
    config: RunConfig, gpu: Gpu, device_count: int, network_bandwidth: float | None
) -> list[Plan]:
    """Closed-form plans of all layouts that may fit, the fastest first.

    Tries meshes, remat policies and micro batches; all other settings are the run's own.
    """
    plans = []
    for variant in _variants(config, device_count):
        try:
            plan = sketch_plan(variant, gpu, device_count, network_bandwidth)
        except UserError:  # impossible on this many devices
            continue
        if plan.estimate.total <= _TOLERANCE * plan.usable_bytes:
            plans.append(plan)
    return sorted(plans, key=lambda plan: plan.step_time.total)


def compile_best(
    plans: list[Plan], count: int, backend: Backend, done: Callable[[Plan], None]
) -> list[Plan]:
    """Compile until `count` layouts fit, in the order given; then the fitting, the fastest first.

    Args:
        done: called after each compilation.
    """
    compiled: list[Plan] = []
    for plan in plans:
        if sum(one.fits for one in compiled) == count or len(compiled) == 3 * count:
            break
        compiled.append(compile_plan(plan, backend))
        done(compiled[-1])
    return sorted(compiled, key=lambda plan: (not plan.fits, plan.step_time.total))


def _variants(config: RunConfig, device_count: int) -> Iterator[RunConfig]:
    """The run in every layout."""
    settings = config.model_dump(mode="json", exclude_unset=True)
    for mesh, remat, size in itertools.product(
        _meshes(config, device_count), REMAT_POLICIES, _MICRO_BATCH_SIZES
    ):
        training = settings.get("training", {}) | {"remat": remat, "micro_batch_size": size}
        if mesh["pipe"] == 1:
            training = training | {"virtual_stages": 1, "pipeline_micro_batches": None}
        changed: dict[str, Any] = {**settings, "mesh": mesh, "training": training}
        try:
            yield parse_config(changed, source="a layout of the search")
        except UserError:
            continue


def _meshes(config: RunConfig, device_count: int) -> Iterator[dict[str, int]]:
    """Ways to divide the devices among the mesh axes."""
    length = config.data.sequence_length
    for sizes in itertools.product(_divisors(device_count), repeat=len(MESH_AXES) - 1):
        product = 1
        for size in sizes:
            product *= size
        if device_count % product:
            continue
        pipe, data, context, tensor = sizes
        mesh = dict(
            zip(MESH_AXES, (pipe, data, device_count // product, context, tensor), strict=True)
        )
        short = context > 1 and length / context < _SHORTEST_SHARD
        if tensor <= GPUS_PER_HOST and not short:
            yield mesh


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
