"""A plan as text for a person."""

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from dongwu_jax.parallel.mesh import MESH_AXES
from dongwu_jax.plan.cluster import GPUS_PER_HOST, LINK_EFFICIENCY
from dongwu_jax.plan.compiling import CompiledStep
from dongwu_jax.plan.layout_search import layout_overrides
from dongwu_jax.plan.memory import POOL_SHARE
from dongwu_jax.plan.planning import Plan
from dongwu_jax.plan.record import CONVENTIONS, flops_per_gpu, mfu
from dongwu_jax.plan.step_time import bubble

_GIB = 2**30
# How far the closed form of memory may be from what the compiler needs, and how far measured peaks
# were above what it needs (docs/plan.md).
_UNCERTAIN_SHARE = 0.15
_ABOVE_COMPILED = 0.06


def print_plan(plan: Plan, console: Console) -> None:
    """The whole plan, with what it assumes."""
    console.print(_heading(plan))
    console.print(_memory(plan))
    console.print(_collectives(plan))
    console.print(_speed(plan))
    console.print(_assumptions(plan))


def print_ranking(plans: list[Plan], considered: int, console: Console) -> None:
    """The compiled layouts of a search, the best first."""
    table = Table(title=f"{len(plans)} layouts compiled of {considered} that may fit")
    for heading in (
        "mesh",
        "remat",
        "micro batch",
        "virtual stages",
        "together",
        "GiB",
        "fits",
        "s/step",
        "MFU (V2)",
        "B tokens/day/8",
    ):
        justify: Any = "left" if heading in ("mesh", "remat") else "right"
        table.add_column(heading, justify=justify)
    for plan in plans:
        time, training = plan.step_time, plan.config.training
        table.add_row(
            _mesh(plan),
            training.remat,
            str(training.micro_batch_size),
            *_schedule(plan),
            f"{plan.peak_bytes / _GIB:.1f}",
            "yes" if plan.fits else "no",
            f"{time.total:.2f}",
            f"{mfu(plan, 'V2'):.1%}",
            f"{time.tokens_per_day_per_host / 1e9:.2f}",
        )
    console.print(table)
    console.print("the first:", *layout_overrides(plans[0].config), soft_wrap=True)
    console.print(*_rule_notes(plans), *_backend_notes(plans[0]), sep="\n")


def _schedule(plan: Plan) -> tuple[str, str]:
    """Virtual stages, and how many micro batches are in the pipeline together."""
    if plan.cluster.mesh_shape["pipe"] == 1:
        return "", ""
    together = plan.config.pipeline_micro_batches(plan.device_count)
    return str(plan.config.training.virtual_stages), str(together)


def _heading(plan: Plan) -> str:
    training = plan.config.training
    return (
        f"{plan.parameters / 1e9:.2f}B parameters on {plan.device_count} x "
        f"{plan.cluster.gpu.name}: {_mesh(plan)}\n"
        f"global batch {training.global_batch_size} x {plan.config.data.sequence_length} tokens, "
        f"micro batch {training.micro_batch_size}, "
        f"{plan.config.accumulation_steps(plan.device_count)} of them a step, remat "
        f"{training.remat}"
    )


def _mesh(plan: Plan) -> str:
    shape = plan.cluster.mesh_shape
    sizes = [f"{axis} {shape[axis]}" for axis in MESH_AXES if shape[axis] > 1]
    return " x ".join(sizes) or "one device"


def _memory(plan: Plan) -> RenderableType:
    estimate, compiled = plan.estimate, plan.compiled
    table = Table(title="memory of one GPU, GiB", title_justify="left")
    table.add_column("")
    table.add_column("closed form", justify="right")
    measured: dict[str, str] = {}
    if compiled is not None:
        rough = "" if compiled.backend == "cuda" else ", rough"
        table.add_column(f"compiled ({compiled.backend}{rough})", justify="right")
        measured = {
            "state": _gib(compiled.argument_bytes),
            "gradients": f"all others: {_gib(compiled.peak_bytes - compiled.argument_bytes)}",
        }
    for name, meaning in _PARTS.items():
        row = f"{name} ({meaning})", _gib(getattr(estimate, name)), measured.get(name, "")
        table.add_row(*row[: len(table.columns)])
    peak = _gib(compiled.peak_bytes) if compiled is not None else ""
    table.add_row(*("together", _gib(estimate.total), peak)[: len(table.columns)])
    return Group(table, *_verdict(plan))


_PARTS = {
    "state": "float32 masters, Adam moments",
    "gradients": "float32",
    "weights": "in the dtype of computation",
    "activations": "kept for the backward pass",
    "temporaries": "joined weights, work, logits",
}


def _gib(count: float) -> str:
    return f"{count / _GIB:.1f}"


def _verdict(plan: Plan) -> list[str]:
    on_cuda = plan.memory_is_compiled
    usable = f"{_gib(plan.usable_bytes)} GiB, {POOL_SHARE:.0%} of the GPU's"
    if plan.out_of_memory:
        return [f"DOES NOT FIT: the compiler ran out of memory ({plan.out_of_memory})"]
    lines = [
        f"{'fits' if plan.fits else 'DOES NOT FIT'}: {_gib(plan.peak_bytes)} GiB "
        f"({'compiled' if on_cuda else 'closed form'}) of {usable}"
    ]
    if not on_cuda and abs(plan.peak_bytes / plan.usable_bytes - 1) <= _UNCERTAIN_SHARE:
        lines.append("near the limit: compile with the CUDA plugin to know")
    if on_cuda and plan.fits and plan.peak_bytes * (1 + _ABOVE_COMPILED) > plan.usable_bytes:
        lines.append(
            f"near the limit: measured peaks were up to {_ABOVE_COMPILED:.0%} above compiled ones"
        )
    return lines


def _collectives(plan: Plan) -> RenderableType:
    compiled = plan.compiled
    source = "closed form" if compiled is None else f"compiled for {compiled.backend}"
    table = Table(title=f"collectives of one GPU in one step ({source})", title_justify="left")
    for heading in ("over", "kind", "dtype", "calls", "GiB sent"):
        justify: Any = "left" if heading in ("over", "kind", "dtype") else "right"
        table.add_column(heading, justify=justify)
    for total in plan.collectives:
        calls = str(total.calls or "")
        sent = f"{total.wire_bytes / _GIB:.2f}"
        table.add_row(" x ".join(total.axes), total.kind, total.dtype, calls, sent)
    notes = [] if compiled is None else _complaints(compiled)
    return Group(table, *notes)


def _complaints(compiled: CompiledStep) -> list[str]:
    notes = []
    if compiled.complaints:
        notes.append(
            f"warning: {len(compiled.complaints)} arrays are replicated on the way from one layout "
            f"to another, e.g. {compiled.complaints[0][:300]}"
        )
    if not compiled.loops_known:
        notes.append("warning: a loop of unknown length was counted as one round")
    return notes


def _speed(plan: Plan) -> RenderableType:
    time = plan.step_time
    table = Table(title="estimated seconds of a step", title_justify="left")
    table.add_column("")
    table.add_column("s", justify="right")
    table.add_column("share", justify="right")
    for label, seconds in (
        ("matrix products", time.matmul),
        ("attention", time.attention),
        ("recomputation", time.recompute),
        (f"pipeline bubble ({bubble(plan.config, plan.cluster.mesh_shape):.1%})", time.bubble),
        ("adding up gradients", time.accumulation),
        ("optimizer", time.optimizer),
        ("communication", time.communication),
        ("step", time.total),
    ):
        table.add_row(label, f"{seconds:.3f}", f"{seconds / time.total:.0%}")
    return Group(
        table,
        f"{time.tokens / time.total:,.0f} tokens/s, "
        f"{time.tokens_per_day_per_host / 1e9:.2f}B tokens a day on 8 GPUs",
        *_utilisation(plan),
        *_rule_notes([plan]),
    )


def _rule_notes(plans: list[Plan]) -> list[str]:
    """What the estimates do not know of the run."""
    notes = []
    if plans[0].config.precision.matmul == "fp8":
        notes.append(
            "warning: precision.matmul=fp8, but time is estimated as for bfloat16; layers of 13B "
            "on one H100 took 0.73 of it (docs/performance.md)"
        )
    if plans[0].config.distillation.teacher is not None:
        notes.append(
            "warning: this is planned without distillation.teacher, which adds its weights in "
            "precision.compute_dtype, split as docs/compression.md says, and its forward pass"
        )
    concerned = [plan for plan in plans if plan.wrongly_taken_as_split]
    if not concerned:
        return notes
    names = ", ".join(concerned[0].wrongly_taken_as_split)
    compiled = all(plan.memory_is_compiled for plan in concerned)
    estimates = "time is" if compiled else "time and memory are"
    return [
        *notes,
        f"warning: sharding.rules leave {names} whole over tensor, but {estimates} estimated as if "
        "tensor split all of heads, kv_heads, mlp and vocab",
    ]


def _utilisation(plan: Plan) -> list[str]:
    """FLOPs, TFLOP/s and MFU in each convention."""
    lines = []
    for convention in CONVENTIONS:
        per_gpu = flops_per_gpu(plan, convention)
        lines.append(
            f"by {convention}: {per_gpu / 1e15:.2f} PFLOP a step and GPU, "
            f"{per_gpu / plan.step_time.total / 1e12:.0f} TFLOP/s, MFU {mfu(plan, convention):.1%}"
        )
    return lines


def _assumptions(plan: Plan) -> str:
    gpu, network = plan.cluster.gpu, plan.cluster.network_bandwidth
    return "\n".join(
        [
            *_backend_notes(plan),
            f"assumed: matrix products at {gpu.matmul_flops / 1e12:.0f} TFLOP/s and attention at "
            f"{gpu.attention_flops / 1e12:.0f} (causal), what steps reach on this GPU, smaller "
            "matrices of tensor parallelism not counted as slower;",
            f"  {GPUS_PER_HOST} GPUs a host, {gpu.link_bandwidth / 1e9:.0f} GB/s each to the "
            f"others and {network / 1e9:.0f} GB/s to other hosts, {LINK_EFFICIENCY:.0%} "
            "of that reached, latency left out; mesh axes from the slowest links inwards: "
            f"{', '.join(MESH_AXES)};",
            "  all communication is waited for, as measured on two H100s; what a network hides "
            "behind compute comes on top;",
            f"  the pool of XLA_PYTHON_CLIENT_MEM_FRACTION={POOL_SHARE} is usable; NCCL, cuDNN and "
            "the CUDA context need the rest",
        ]
    )


def _backend_notes(plan: Plan) -> list[str]:
    compiled = plan.compiled
    if compiled is None:
        return []
    how = f"compiled in {compiled.seconds:.0f} s with JAX {compiled.jax_version}"
    if compiled.backend == "cuda":
        return [f"{how} for {plan.device_count} {plan.cluster.gpu.name}, without a GPU"]
    return [
        f"{how} for {plan.device_count} virtual CPU devices, deep models from two shallow ones: "
        "collectives as on GPUs (bfloat16 counted where the CPU sends float32; closed form over "
        "tensor), memory rough (no flash attention). pip install 'dongwu_jax[plan]' to "
        "compile for GPUs"
    ]
