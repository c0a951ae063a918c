"""The collectives of a step in closed form, to rank layouts before any is compiled."""

from collections.abc import Mapping

from dongwu_jax.config import RunConfig
from dongwu_jax.parallel.sharding import resolve_rules
from dongwu_jax.plan.hlo import CollectiveTotal
from dongwu_jax.plan.parameters import parameter_table

_BYTES = {"bfloat16": 2, "float32": 4}
_NAMES = {"bfloat16": "bf16", "float32": "f32"}


def estimate_traffic(config: RunConfig, mesh_shape: Mapping[str, int]) -> list[CollectiveTotal]:
    """What every device of this layout exchanges in a step.

    Raises:
        UserError: a sharding rule is impossible.
    """
    totals = [
        *_weights(config, mesh_shape),
        *_replicas(config, mesh_shape),
        *_tensor(config, mesh_shape),
        *_context(config, mesh_shape),
        *_pipe(config, mesh_shape),
    ]
    return [total for total in totals if total.wire_bytes]


def _count(mesh_shape: Mapping[str, int], *axes: str) -> int:
    count = 1
    for axis in axes or mesh_shape:
        count *= mesh_shape[axis]
    return count


def _weights(config: RunConfig, mesh_shape: Mapping[str, int]) -> list[CollectiveTotal]:
    """Weights are joined in forward and backward pass, gradients summed, in every micro batch."""
    axes = tuple(axis for axis in ("fsdp", "context") if mesh_shape[axis] > 1)
    times = config.accumulation_steps(_count(mesh_shape))
    whole = sum(
        parameter_table(config.model).used(resolve_rules(config.sharding.rules), mesh_shape)
    )
    compute, reduce = config.precision.compute_dtype, config.precision.grad_reduce_dtype
    return [
        _total("all-gather", axes, compute, 2 * times * whole, mesh_shape),
        _total("reduce-scatter", axes, reduce, times * whole, mesh_shape),
    ]


def _replicas(config: RunConfig, mesh_shape: Mapping[str, int]) -> list[CollectiveTotal]:
    """Gradients are summed over replicas once; with ZeRO-1, weights are joined again."""
    rules = resolve_rules(config.sharding.rules)
    held = parameter_table(config.model).held(rules, mesh_shape)
    precision = config.precision
    if "data" not in rules["embed"]:
        reduce = precision.grad_reduce_dtype
        return [_total("all-reduce", ("data",), reduce, held, mesh_shape)]
    return [
        _total("reduce-scatter", ("data",), precision.grad_reduce_dtype, held, mesh_shape),
        _total("all-gather", ("data",), precision.compute_dtype, held, mesh_shape),
    ]


def _tensor(config: RunConfig, mesh_shape: Mapping[str, int]) -> list[CollectiveTotal]:
    """Before and after attention and feed-forward, the sequence is joined and split again."""
    layers = config.model.num_layers / mesh_shape["pipe"]
    again = 0 if config.training.remat == "none" else 2
    stream = _tokens(config, mesh_shape) * config.model.hidden_size
    streams = config.accumulation_steps(_count(mesh_shape)) * stream
    dtype = config.precision.compute_dtype
    # Embedding, head and loss add two to each.
    joined, split = (4 + again) * layers + 2, 4 * layers + 2
    return [
        _total("all-gather", ("tensor",), dtype, joined * streams, mesh_shape),
        _total("reduce-scatter", ("tensor",), dtype, split * streams, mesh_shape),
    ]


def _context(config: RunConfig, mesh_shape: Mapping[str, int]) -> list[CollectiveTotal]:
    """Attention exchanges heads for positions, or passes keys and values round."""
    context, model = mesh_shape["context"], config.model
    if context == 1:
        return []
    times = config.accumulation_steps(_count(mesh_shape)) * model.num_layers / mesh_shape["pipe"]
    tokens = _tokens(config, mesh_shape) * times * model.width_per_head / mesh_shape["tensor"]
    dtype = config.precision.compute_dtype
    passes = 3 if config.training.remat == "full" else 2
    if config.context_attention(_count(mesh_shape)) == "ulysses":
        elements = passes * 2 * tokens * (model.num_heads + model.kv_heads)
        return [_total("all-to-all", ("context",), dtype, elements, mesh_shape)]
    elements = (passes + 2) * 2 * (context - 1) * tokens * model.kv_heads
    return [_total("collective-permute", ("context",), dtype, elements, mesh_shape)]


def _pipe(config: RunConfig, mesh_shape: Mapping[str, int]) -> list[CollectiveTotal]:
    """Weights and gradients are exchanged once; activations go from stage to stage."""
    stages, training = mesh_shape["pipe"], config.training
    if stages == 1:
        return []
    count = _count(mesh_shape)
    together, times = config.pipeline_micro_batches(count), config.accumulation_steps(count)
    ticks = (training.virtual_stages * together + stages - 1) * times / together
    stream = _tokens(config, mesh_shape) * config.model.hidden_size / mesh_shape["tensor"]
    held = parameter_table(config.model).held(resolve_rules(config.sharding.rules), mesh_shape)
    precision = config.precision
    dtype = precision.compute_dtype
    return [
        _total("collective-permute", ("pipe",), dtype, 2 * ticks * stream, mesh_shape),
        _total("reduce-scatter", ("pipe",), dtype, times * stream, mesh_shape),
        _total("all-gather", ("pipe",), dtype, times * stream, mesh_shape),
        _total("all-to-all", ("pipe",), dtype, held, mesh_shape),
        _total("all-to-all", ("pipe",), precision.grad_reduce_dtype, held, mesh_shape),
    ]


def _tokens(config: RunConfig, mesh_shape: Mapping[str, int]) -> float:
    """Tokens of one micro batch on one device."""
    length = config.data.sequence_length / mesh_shape["context"]
    return config.training.micro_batch_size * length


def _total(
    kind: str,
    axes: tuple[str, ...],
    dtype: str,
    elements: float,
    mesh_shape: Mapping[str, int],
) -> CollectiveTotal:
    """`elements` is the larger of what one device puts in and gets out; calls are not counted."""
    size = _count(mesh_shape, *axes) if axes else 1
    full = int(elements * _BYTES[dtype])
    if kind == "collective-permute":
        wire = full if size > 1 else 0
    else:
        wire = (2 if kind == "all-reduce" else 1) * full * (size - 1) // size
    operand = full // size if kind == "all-gather" else full
    result = full // size if kind == "reduce-scatter" else full
    return CollectiveTotal(kind, axes, _NAMES[dtype], 0, operand, result, wire)
