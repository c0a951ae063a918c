"""Trying layouts: all that divide by closed form, the best few by compiling them."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from dongwu_jax.config import RunConfig, parse_config
from dongwu_jax.config.sections import TrainingConfig
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.mesh import MESH_AXES
from dongwu_jax.plan.cluster import GPUS_PER_HOST, Gpu
from dongwu_jax.plan.deviceless import Backend
from dongwu_jax.plan.memory import POOL_SHARE, estimate_memory
from dongwu_jax.plan.planning import Plan, compile_plan, sketch_plan

REMAT_POLICIES = ("none", "minimal", "qkv_attention", "attention", "full")
# The settings of training that a search varies.
_VARIED = ("remat", "micro_batch_size", "virtual_stages", "pipeline_micro_batches")
_LARGEST_MICRO_BATCH = 16
_MOST_VIRTUAL_STAGES = 4  # of the numbers that divide a stage's layers
_ROUNDS = (1, 2, 4)  # micro batches in the pipeline together, times its stages
# The closed form is not exact: what it finds slightly too large may fit.
_TOLERANCE = 1.1
# Attention over shards of a shorter sequence is not worth its messages.
_SHORTEST_SHARD = 2048


def sketch_layouts(
    config: RunConfig, gpu: Gpu, device_count: int, network_bandwidth: float | None
) -> list[Plan]:
    """Closed-form plans of all layouts that may fit, the fastest first.

    Tries the run as it is, meshes, remat policies, micro batches and, with a pipeline, its virtual
    stages and rounds; all other settings are the run's own.
    """
    plans: list[Plan] = []
    limit = _TOLERANCE * POOL_SHARE * gpu.memory_bytes
    for variant in (config, *_variants(config, device_count)):
        try:
            variant.check_devices(device_count)
            # First, for most do not fit, and this costs less than the rest of a plan.
            if estimate_memory(variant, variant.mesh_shape(device_count)).total > limit:
                continue
            plan = sketch_plan(variant, gpu, device_count, network_bandwidth)
        except (UserError, ValueError):  # impossible on this many devices
            continue
        if not plans or _layout(plan) != _layout(plans[0]):  # the run comes again as a variant
            plans.append(plan)
    return sorted(plans, key=lambda plan: plan.step_time.total)


def layout_overrides(config: RunConfig) -> list[str]:
    """What a search varies, as the overrides that make its run this one."""
    training = config.training.model_dump(mode="json", include=set(_VARIED))
    return [
        f"{section}.{field}={'null' if value is None else value}"
        for section, fields in (("mesh", config.mesh.model_dump()), ("training", training))
        for field, value in fields.items()
    ]


def _layout(plan: Plan) -> tuple[dict[str, int], TrainingConfig]:
    """What a search varies, with nothing left open."""
    together = plan.config.pipeline_micro_batches(plan.device_count)
    training = plan.config.training.model_copy(update={"pipeline_micro_batches": together})
    return plan.cluster.mesh_shape, training


def compile_best(
    plans: list[Plan], count: int, backend: Backend, done: Callable[[Plan], None]
) -> list[Plan]:
    """Compile until `count` layouts fit, in the order given; then the fitting, the fastest first.

    Args:
        done: called after each compilation.
    """
    compiled: list[Plan] = []
    for plan in plans:
        if sum(one.fits for one in compiled) == count or len(compiled) == most_compiled(count):
            break
        compiled.append(compile_plan(plan, backend))
        done(compiled[-1])
    return sorted(compiled, key=lambda plan: (not plan.fits, plan.step_time.total))


def most_compiled(count: int) -> int:
    """How many layouts `compile_best` compiles at most."""
    return 3 * count


def _variants(config: RunConfig, device_count: int) -> Iterator[RunConfig]:
    """The run in every layout."""
    settings = config.model_dump(mode="json", exclude_unset=True)
    for mesh in _meshes(config, device_count):
        for changes in _training_changes(config, mesh):
            training = settings.get("training", {}) | changes
            changed: dict[str, Any] = {**settings, "mesh": mesh, "training": training}
            try:
                yield parse_config(changed, source="a layout of the search")
            except UserError:
                continue


def _training_changes(config: RunConfig, mesh: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Remat policies, micro batches and schedules of the pipeline that a mesh can have."""
    replicas, pipe = mesh["data"] * mesh["fsdp"], mesh["pipe"]
    sequences, uneven = divmod(config.training.global_batch_size, replicas)
    if uneven or config.model.num_layers % pipe:
        return
    for size in _divisors(sequences):
        if size > _LARGEST_MICRO_BATCH:
            break
        for turns, together in _schedules(config.model.num_layers // pipe, pipe, sequences // size):
            for remat in REMAT_POLICIES:
                yield dict(zip(_VARIED, (remat, size, turns, together), strict=True))


def _schedules(layers: int, pipe: int, micro_batches: int) -> list[tuple[int, int | None]]:
    """(virtual stages, micro batches in the pipeline together) for stages of so many layers."""
    if pipe == 1:
        return [(1, None)]
    turns = _divisors(layers)
    if len(turns) > _MOST_VIRTUAL_STAGES:  # the fewest, the most, and some between
        last = _MOST_VIRTUAL_STAGES - 1
        turns = [turns[step * (len(turns) - 1) // last] for step in range(_MOST_VIRTUAL_STAGES)]
    rounds = [times * pipe for times in _ROUNDS if micro_batches % (times * pipe) == 0]
    return list(itertools.product(turns, rounds))


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
