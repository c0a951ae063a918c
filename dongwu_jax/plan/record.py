"""A plan as a record for a file or a program."""

from dataclasses import asdict
from typing import Any

from dongwu_jax.models.flops import flops_per_token
from dongwu_jax.plan.layout_search import layout_overrides
from dongwu_jax.plan.planning import Plan

CONVENTIONS = ("V1", "V2", "V3")
"""Of counting FLOPs, see `models/flops.py`."""


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """Every figure of the plan; bytes, seconds and FLOPs of one device and one step."""
    time = plan.step_time
    return {
        "gpu": plan.cluster.gpu.key,
        "devices": plan.device_count,
        "mesh": plan.cluster.mesh_shape,
        "overrides": layout_overrides(plan.config),
        "remat": plan.config.training.remat,
        "micro_batch_size": plan.config.training.micro_batch_size,
        "parameters": plan.parameters,
        "fits": plan.fits,
        "peak_bytes": plan.peak_bytes,
        "usable_bytes": plan.usable_bytes,
        "memory_estimate": asdict(plan.estimate) | {"total": plan.estimate.total},
        "compiled": None if plan.compiled is None else asdict(plan.compiled),
        "out_of_memory": plan.out_of_memory,
        "collectives": [asdict(total) for total in plan.collectives],
        "flops_per_token": {
            convention: flops_per_token(
                plan.config.model, plan.config.data.sequence_length, convention
            )
            for convention in CONVENTIONS
        },
        "wrongly_taken_as_split": plan.wrongly_taken_as_split,
        "step_time": asdict(time) | {"total": time.total},
        "mfu": {convention: mfu(plan, convention) for convention in CONVENTIONS},
        "tokens_per_day_per_8_gpus": time.tokens_per_day_per_host,
    }


def flops_per_gpu(plan: Plan, convention: str) -> float:
    """FLOPs of one GPU in a step, in a convention of `CONVENTIONS`."""
    each = flops_per_token(plan.config.model, plan.config.data.sequence_length, convention)
    return each * plan.step_time.tokens / plan.device_count


def mfu(plan: Plan, convention: str) -> float:
    """Model FLOPs utilisation: the share of what the GPU's data sheet promises, from 0 to 1."""
    achieved = flops_per_gpu(plan, convention) / plan.step_time.total
    return achieved / plan.cluster.gpu.peak_flops
