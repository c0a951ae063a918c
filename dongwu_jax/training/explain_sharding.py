"""What every device holds: the table of `--explain-sharding`."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from rich.table import Table

from dongwu_jax.config import RunConfig
from dongwu_jax.models.parameters import (
    Parameters,
    cast_matrices,
    logical_axes,
    named_parameters,
)
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.parallel.sharding import Activation, LogicalAxes, LogicalSharding, recording
from dongwu_jax.training.batches import BATCH_AXES, BatchLayout
from dongwu_jax.training.state import abstract_state
from dongwu_jax.training.step import make_objective
from dongwu_jax.training.trained_weights import abstract_frozen, abstract_trained, trained_axes

_LAYER = re.compile(r"^layers\.\d+\.")
_BLOCK = ("Block", "Attention", "attention kernel", "MLP")  # what makes a block's activations


def explain_sharding(config: RunConfig, devices: list[jax.Device]) -> list[Table]:
    """Tables of the mesh, the weights, the batch and the activations of a training step.

    Raises:
        UserError: the layout is impossible on these devices.
    """
    sharding = make_sharding(config, devices)
    return [
        _mesh_table(sharding),
        *_weight_tables(config, sharding),
        _activations_table(config, sharding),
    ]


def _mesh_table(sharding: LogicalSharding) -> Table:
    table = Table("mesh axis", "devices", "logical axes that it splits", title="Mesh and rules")
    for axis, size in sharding.mesh.shape.items():
        split = [name for name, axes in sharding.rules.items() if axis in axes]
        table.add_row(axis, str(size), ", ".join(split))
    return table


def _weight_tables(config: RunConfig, sharding: LogicalSharding) -> list[Table]:
    what = "Adapters" if config.lora.rank else "Weights"
    title = f"{what}, stored in float32; Adam keeps two more arrays like each of these"
    trained = _weights_table(title, abstract_trained(config), trained_axes(config), sharding)
    if not config.lora.rank:
        return [trained]
    frozen = abstract_frozen(config, sharding).base
    title = f"Weights beneath the adapters, in {config.precision.compute_dtype}"
    return [trained, _weights_table(title, frozen, logical_axes(config.model), sharding)]


def _weights_table(
    title: str, weights: Parameters, axes: Mapping[str, LogicalAxes], sharding: LogicalSharding
) -> Table:
    """Weights as they are stored; blocks are alike, so one line stands for all of them."""
    table = _table(title)
    shapes = named_parameters(weights)
    counts = Counter(_LAYER.sub("layers.*.", name) for name in shapes)
    total = 0
    for name, shape in shapes.items():
        local = sharding.named(axes[name], shape.shape).shard_shape(shape.shape)
        total += math.prod(local) * shape.dtype.itemsize
        common = _LAYER.sub("layers.*.", name)
        if common in counts:
            _add(
                table,
                sharding,
                common,
                str(counts.pop(common)),
                axes[name],
                local,
                shape.dtype.name,
            )
    table.add_section()
    table.add_row("all weights", "", "", "", "", "", _size(total))
    return table


def _activations_table(config: RunConfig, sharding: LogicalSharding) -> Table:
    layout = BatchLayout(config, sharding)
    table = _table(
        "Batch, activations of one micro batch, and what goes through a pipeline together, "
        "in the order they are made"
    )
    local = layout.sharding.shard_shape(layout.shape)
    for name, array in layout.abstract().items():
        _add(table, sharding, name, "1", BATCH_AXES, local, array.dtype.name)
    counts = _counts(_traced_activations(config, sharding), config.model.num_layers)
    for activation, count in counts.items():
        parts = sharding.tensor_spec(activation.axes)
        tensor = sharding.size("tensor")
        shape = tuple(
            size // tensor if part else size
            for size, part in zip(activation.shape, parts, strict=True)
        )
        _add(
            table, sharding, activation.where, str(count), activation.axes, shape, activation.dtype
        )
    return table


def _counts(activations: Iterable[Activation], layers: int) -> dict[Activation, int]:
    """How many arrays like each a forward pass makes; a loop's blocks are traced once."""
    traced = Counter(activations)
    blocks = sum(n for activation, n in traced.items() if "attention_heads" in activation.axes)
    return {
        activation: n * layers // blocks if activation.where.split(".")[0] in _BLOCK else n
        for activation, n in traced.items()
    }


def _traced_activations(config: RunConfig, sharding: LogicalSharding) -> Iterable[Activation]:
    """What the forward pass of the training step constrains."""
    objective = make_objective(config, sharding, sharding.mesh.devices.flat[0].platform)
    dtype = config.precision.compute_dtype
    weights = jax.eval_shape(
        lambda parameters: cast_matrices(parameters, dtype),
        abstract_state(config, sharding).parameters,
    )
    with recording() as activations:
        batch, frozen = BatchLayout(config, sharding).abstract(), abstract_frozen(config, sharding)
        jax.eval_shape(objective.loss, weights, batch, frozen)
    return activations


def _table(title: str) -> Table:
    return Table(
        "name", "count", "logical axes", "mesh axes", "shape per device", "dtype", "bytes",
        title=title,
    )  # fmt: skip


def _add(
    table: Table,
    sharding: LogicalSharding,
    name: str,
    count: str,
    axes: LogicalAxes,
    shape: tuple[int, ...],
    dtype: str,
) -> None:
    split = [" x ".join(sharding.mesh_axes(axis)) or "-" for axis in axes]
    size = math.prod(shape) * jnp.dtype(dtype).itemsize
    table.add_row(
        name,
        count,
        ", ".join(axes),
        ", ".join(split),
        ", ".join(map(str, shape)),
        dtype,
        _size(size),
    )


def _size(count: int) -> str:
    """Bytes as a person reads them."""
    if count < 2**20:
        return f"{count:,} B"
    return f"{count / 2**20:,.1f} MiB"
