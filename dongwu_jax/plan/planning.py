"""Putting a plan together: compile, add up, estimate."""

from dataclasses import dataclass, replace

from dongwu_jax.config import RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.sharding import resolve_rules
from dongwu_jax.plan.cluster import Cluster, Gpu
from dongwu_jax.plan.compiling import CompiledStep, DoesNotFit, compile_step
from dongwu_jax.plan.deviceless import Backend
from dongwu_jax.plan.expected import expected_totals
from dongwu_jax.plan.hlo import CollectiveTotal
from dongwu_jax.plan.memory import POOL_SHARE, MemoryEstimate, estimate_memory
from dongwu_jax.plan.parameters import parameter_table
from dongwu_jax.plan.step_time import StepTime, estimate_step_time

# What the closed forms of compute, working memory and traffic take to be split over `tensor`.
_TAKEN_AS_SPLIT = ("heads", "kv_heads", "mlp", "vocab")


@dataclass(frozen=True)
class Plan:
    """What a run needs and how fast it will be."""

    config: RunConfig
    cluster: Cluster
    device_count: int
    parameters: int
    estimate: MemoryEstimate  # closed form
    compiled: CompiledStep | None  # None: not compiled, or the compiler ran out of memory
    out_of_memory: str | None  # what it said then
    collectives: list[CollectiveTotal]  # of the compiled step, else closed form
    step_time: StepTime

    @property
    def usable_bytes(self) -> float:
        """What a step may use of a GPU's memory."""
        return POOL_SHARE * self.cluster.gpu.memory_bytes

    @property
    def wrongly_taken_as_split(self) -> list[str]:
        """What sharding.rules leave whole although the closed forms know of no such rule."""
        if self.cluster.mesh_shape["tensor"] == 1:
            return []
        rules = resolve_rules(self.config.sharding.rules)
        return [name for name in _TAKEN_AS_SPLIT if "tensor" not in rules[name]]

    @property
    def memory_is_compiled(self) -> bool:
        """Whether `peak_bytes` is the compiler's for this GPU, and no closed form."""
        return self.compiled is not None and self.compiled.backend == "cuda"

    @property
    def peak_bytes(self) -> float:
        """The best figure there is: XLA:CPU's is none, its attention and its buffers differ."""
        if self.compiled is not None and self.memory_is_compiled:
            return self.compiled.peak_bytes
        return self.estimate.total

    @property
    def fits(self) -> bool:
        """Whether the step runs on this GPU."""
        return self.out_of_memory is None and self.peak_bytes <= self.usable_bytes


def sketch_plan(
    config: RunConfig, gpu: Gpu, device_count: int, network_bandwidth: float | None = None
) -> Plan:
    """A plan in closed form, at once.

    Args:
        network_bandwidth: bytes/s a GPU sends to other hosts; None: the usual for this GPU.

    Raises:
        UserError: the run is impossible on this many devices.
    """
    try:
        config.check_devices(device_count)
        mesh_shape = config.mesh_shape(device_count)
    except ValueError as error:
        raise UserError(str(error)) from None
    cluster = Cluster(gpu, mesh_shape, network_bandwidth or gpu.network_bandwidth)
    collectives = expected_totals(config, device_count)
    return Plan(
        config=config,
        cluster=cluster,
        device_count=device_count,
        parameters=parameter_table(config.model).total,
        estimate=estimate_memory(config, mesh_shape),
        compiled=None,
        out_of_memory=None,
        collectives=collectives,
        step_time=estimate_step_time(config, cluster, collectives),
    )


def compile_plan(sketch: Plan, backend: Backend) -> Plan:
    """The plan with memory and collectives of the compiled step.

    Raises:
        UserError: the run is impossible, or this machine too small to compile it.
    """
    cluster = sketch.cluster
    try:
        compiled = compile_step(sketch.config, cluster.gpu, sketch.device_count, backend)
    except DoesNotFit as error:
        return replace(sketch, out_of_memory=str(error))
    collectives = compiled.collectives
    if backend == "cpu":
        # XLA:CPU sums over `tensor` in other ways than XLA:GPU, which splits while it sums.
        collectives = [
            *(total for total in compiled.collectives if "tensor" not in total.axes),
            *(total for total in sketch.collectives if "tensor" in total.axes),
        ]
    step_time = estimate_step_time(sketch.config, cluster, collectives)
    return replace(sketch, compiled=compiled, collectives=collectives, step_time=step_time)
