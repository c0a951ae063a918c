"""How long a training step takes: compute at measured rates, communication at stated bandwidths."""

from collections.abc import Sequence
from dataclasses import dataclass

from dongwu_jax.config import ModelConfig, RunConfig
from dongwu_jax.models.flops import flops_per_token
from dongwu_jax.parallel.pipeline import Schedule
from dongwu_jax.parallel.sharding import resolve_rules
from dongwu_jax.plan.cluster import Cluster
from dongwu_jax.plan.hlo import CollectiveTotal
from dongwu_jax.plan.parameters import parameter_table

# Bytes the optimizer reads and writes for each parameter: gradient, master, moments, and back.
_OPTIMIZER_BYTES = 30
# For each parameter and micro batch: reading a gradient, adding it to the float32 total.
_ACCUMULATION_BYTES = 10
# The same in a pipeline, which also takes its layers out of a stack at each tick, twice, and stacks
# their gradients. Fitted to two H100s (benchmarks/plan_check.py).
_TICK_BYTES = 30


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and what follows from them."""

    matmul: float
    attention: float
    recompute: float
    bubble: float  # idle in the pipeline
    accumulation: float  # of gradients, over micro batches
    optimizer: float
    communication: float
    tokens: int  # of one step, all devices
    device_count: int

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        compute = self.matmul + self.attention + self.recompute + self.bubble
        return compute + self.accumulation + self.optimizer + self.communication

    @property
    def tokens_per_day_per_host(self) -> float:
        """Tokens that 8 of the GPUs work through in a day."""
        return self.tokens / self.total * 86_400 * 8 / self.device_count


def estimate_step_time(
    config: RunConfig, cluster: Cluster, collectives: Sequence[CollectiveTotal]
) -> StepTime:
    """The time of a step that moves `collectives`.

    Compute hides no communication: a step on two H100s takes as long as both together, though the
    program starts the one beside the other (benchmarks/plan_check.py).
    """
    gpu, model, length = cluster.gpu, config.model, config.data.sequence_length
    device_count = cluster.group_size(tuple(cluster.mesh_shape))
    tokens = config.training.global_batch_size * length
    share = tokens / device_count
    attention_flops = causal_attention_flops(model, length)
    matmul_flops = flops_per_token(model, length, "V3") - attention_flops
    matmul = share * matmul_flops / gpu.matmul_flops
    attention = share * attention_flops / gpu.attention_flops
    again, attention_again = _recomputed(config)
    recompute = share * (again / gpu.matmul_flops + attention_again / gpu.attention_flops)
    bubble = (matmul + attention + recompute) * _idle_per_work(config, cluster)
    rules = resolve_rules(config.sharding.rules)
    stored = parameter_table(model).stored(rules, cluster.mesh_shape)
    return StepTime(
        matmul=matmul,
        attention=attention,
        recompute=recompute,
        bubble=bubble,
        accumulation=_accumulated_bytes(config, cluster) / gpu.memory_bandwidth,
        optimizer=_OPTIMIZER_BYTES * stored / gpu.memory_bandwidth,
        communication=sum(_seconds(collective, cluster) for collective in collectives),
        tokens=tokens,
        device_count=device_count,
    )


def causal_attention_flops(model: ModelConfig, sequence_length: int) -> float:
    """FLOPs of attention itself on one token of training, causal attention counted once."""
    full = flops_per_token(model, sequence_length, "V2")
    return full - flops_per_token(model, sequence_length, "V3")


def bubble(config: RunConfig, mesh_shape: dict[str, int]) -> float:
    """The share of its time that a pipeline stage is idle, (P-1)/(vM+P-1)."""
    stages, count = mesh_shape["pipe"], 1
    for size in mesh_shape.values():
        count *= size
    together = config.pipeline_micro_batches(count)
    return Schedule(stages, config.training.virtual_stages, together).bubble if stages > 1 else 0.0


def _idle_per_work(config: RunConfig, cluster: Cluster) -> float:
    idle = bubble(config, cluster.mesh_shape)
    return idle / (1 - idle)


def _accumulated_bytes(config: RunConfig, cluster: Cluster) -> float:
    """Memory traffic of adding up gradients in float32."""
    shape, training = cluster.mesh_shape, config.training
    table, rules = parameter_table(config.model), resolve_rules(config.sharding.rules)
    device_count = cluster.group_size(tuple(shape))
    micro_batches = config.accumulation_steps(device_count)
    if shape["pipe"] > 1:
        together = config.pipeline_micro_batches(device_count)
        schedule = Schedule(shape["pipe"], training.virtual_stages, together)
        ticks = schedule.ticks * micro_batches // together
        return _TICK_BYTES * ticks * table.used(rules, shape)[0] / training.virtual_stages
    return (
        _ACCUMULATION_BYTES * micro_batches * table.held(rules, shape) if micro_batches > 1 else 0
    )


def _recomputed(config: RunConfig) -> tuple[float, float]:
    """FLOPs on one token that the remat policy runs again: matrix products, attention.

    The last product of a block is never run again: nothing needs its result.
    """
    model, remat = config.model, config.training.remat
    width, heads = model.hidden_size, model.num_heads * model.width_per_head
    kv_heads, mlp = model.kv_heads * model.width_per_head, model.intermediate_size
    qkv = 2 * width * (heads + 2 * kv_heads)
    rest = 2 * width * heads + 4 * width * mlp  # o_proj, gate and up
    products = {
        "none": 0,
        "minimal": 0,
        "qkv_attention": rest,
        "attention": qkv + rest,
        "offload": qkv + rest,
        "full": qkv + rest,
    }[remat]
    forward = causal_attention_flops(model, config.data.sequence_length) / 3
    return model.num_layers * products, forward if remat == "full" else 0.0


def _seconds(total: CollectiveTotal, cluster: Cluster) -> float:
    """How long the links are busy with these collectives."""
    if total.kind == "collective-permute":
        return total.wire_bytes / cluster.neighbour_bandwidth(total.axes)
    if total.kind == "all-to-all":
        return total.wire_bytes / cluster.exchange_bandwidth(total.axes)
    return total.wire_bytes / cluster.ring_bandwidth(total.axes)
