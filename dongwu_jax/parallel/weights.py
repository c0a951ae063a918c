"""Where a weight lies, and how it comes to where it is used.

The state of training is stored split: by default the dimension `embed` of every matrix over fsdp,
context and pipe. Bringing weights to the computation has two rhythms:

- once a step: over `pipe` each stage receives its own layers whole (an exchange, all_to_all), and
  what `data` splits (ZeRO-1) is joined;
- once a use (a block's forward, and again its backward): what fsdp and context split is joined, and
  forgotten afterwards.

Gradients take the same ways back, summed over the devices that saw other tokens.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dongwu_jax.errors import UserError
from dongwu_jax.parallel.collectives import (
    all_gather,
    all_max,
    all_reduce,
    all_to_all,
    reduce_scatter,
)
from dongwu_jax.parallel.mesh import MANUAL_AXES
from dongwu_jax.parallel.sharding import LogicalAxes, LogicalSharding, current_sharding

Weights = dict[str, jax.Array]

# The name of joined weights for remat policies, which never keep them.
GATHERED = "gathered_weight"
_PER_USE = ("fsdp", "context")


@dataclass(frozen=True)
class WeightLayout:
    """How the manual mesh axes split one weight."""

    axes: LogicalAxes
    dim: int  # the dimension that they split; 0 where none does
    per_use: tuple[str, ...]  # those of fsdp and context that do
    per_step: tuple[str, ...]  # those of data and pipe that do


def weight_layout(sharding: LogicalSharding, axes: LogicalAxes) -> WeightLayout:
    """The layout of a weight with these logical axes.

    Raises:
        UserError: the rules split two of its dimensions.
    """
    split = {
        dim: [axis for axis in sharding.mesh_axes(name) if axis in MANUAL_AXES]
        for dim, name in enumerate(axes)
    }
    dims = [dim for dim, mesh_axes in split.items() if mesh_axes]
    if len(dims) > 1:
        raise UserError(
            f"sharding.rules: {' and '.join(axes[dim] for dim in dims)} of one weight {axes} are "
            f"both split over {', '.join(MANUAL_AXES)}; only one of its dimensions may be"
        )
    dim = dims[0] if dims else 0
    here = split.get(dim, [])
    return WeightLayout(
        axes,
        dim,
        tuple(axis for axis in here if axis in _PER_USE),
        tuple(axis for axis in here if axis not in _PER_USE),
    )


def use_weight(weight: jax.Array, axes: LogicalAxes) -> jax.Array:
    """The weight as a computation needs it: joined over fsdp and context.

    Its gradient is summed over them in `grad_reduce_dtype`. Where nothing is sharded, a no-op.
    """
    sharding = current_sharding()
    if sharding is None:
        return weight
    layout = weight_layout(sharding, axes)
    if not layout.per_use:
        return weight
    return checkpoint_name(_joined(weight, layout, sharding.grad_reduce_dtype), GATHERED)


def is_joined(axes: LogicalAxes) -> bool:
    """Whether devices share a weight with these logical axes, and join it for every use."""
    sharding = current_sharding()
    return sharding is not None and bool(weight_layout(sharding, axes).per_use)


def gradient_dtype(axes: LogicalAxes) -> str | None:
    """The dtype in which devices that join such a weight for every use sum its gradient.

    Returns:
        None where it is not joined: the weight's own.
    """
    sharding = current_sharding()
    return sharding.grad_reduce_dtype if sharding and is_joined(axes) else None


def largest_of_all(largest: jax.Array, axes: LogicalAxes) -> jax.Array:
    """The largest of a scalar that each device found in its own part of a weight.

    Args:
        axes: logical axes of the weight.
    """
    sharding = current_sharding()
    per_use = weight_layout(sharding, axes).per_use if sharding else ()
    return all_max(largest, per_use) if per_use else largest


def joins_weights() -> bool:
    """Whether `use_weight` has anything to join here."""
    sharding = current_sharding()
    return sharding is not None and sharding.size(*_PER_USE) > 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _joined(weight: jax.Array, layout: WeightLayout, reduce_dtype: str) -> jax.Array:
    return all_gather(weight, layout.per_use, layout.dim, layout.axes)


def _joined_forward(
    weight: jax.Array, layout: WeightLayout, reduce_dtype: str
) -> tuple[jax.Array, None]:
    return _joined(weight, layout, reduce_dtype), None


def _joined_backward(
    layout: WeightLayout, reduce_dtype: str, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    summed = reduce_scatter(gradient.astype(reduce_dtype), layout.per_use, layout.dim, layout.axes)
    return (summed.astype(gradient.dtype),)


_joined.defvjp(_joined_forward, _joined_backward)


@dataclass(frozen=True)
class WeightExchange:
    """What happens to all weights and gradients once a step.

    Args:
        axes: logical axes of every weight by dotted name.
        num_layers: of the model.
        virtual_stages: pieces of the layers that each pipeline stage holds.
    """

    sharding: LogicalSharding
    axes: Mapping[str, LogicalAxes]
    num_layers: int
    virtual_stages: int

    def fetch(self, stored: Weights) -> Weights:
        """Weights for one step, on this device.

        With a pipeline, the layers of this device's stage are stacked under names without their
        number (`layers.attention.q_proj`, [virtual stages, layers of a piece, ...]).
        """
        fetched = {
            name: self._joined_over_step(weight, self._layout(name))
            for name, weight in stored.items()
            if not self._staged(name)
        }
        for name in self._block_names():
            stack = jnp.stack([stored[f"layers.{i}.{name}"] for i in self._stage_order()])
            fetched[f"layers.{name}"] = self._own_layers(stack, self._layout(f"layers.0.{name}"))
        return fetched

    def give_back(self, gradients: Weights) -> Weights:
        """Summed gradients, each device keeping what it stores, under the names of storage.

        Args:
            gradients: float32, by the names of `fetch`.
        """
        given = {
            name: self._summed(gradient, self._layout(name), over_pipe=True)
            for name, gradient in gradients.items()
            if not self._staged(name)
        }
        for name in self._block_names():
            layout = self._layout(f"layers.0.{name}")
            stack = gradients[f"layers.{name}"]
            stack = stack.reshape(-1, *stack.shape[2:])
            stack = self._all_layers(self._summed(stack, _stacked(layout), False), layout)
            for position, layer in enumerate(self._stage_order()):
                given[f"layers.{layer}.{name}"] = stack[position]
        return given

    def _layout(self, name: str) -> WeightLayout:
        return weight_layout(self.sharding, self.axes[name])

    def _staged(self, name: str) -> bool:
        return self.sharding.size("pipe") > 1 and name.startswith("layers.")

    def _block_names(self) -> list[str]:
        """Names of a block's weights, when the layers are divided among stages."""
        first = "layers.0."
        return [
            name.removeprefix(first)
            for name in self.axes
            if name.startswith(first) and self._staged(name)
        ]

    def _stage_order(self) -> list[int]:
        """All layers, those of the first stage first.

        Piece k of the layers belongs to stage k modulo the number of stages.
        """
        stages = self.sharding.size("pipe")
        piece = self.num_layers // (stages * self.virtual_stages)
        return [
            (turn * stages + stage) * piece + layer
            for stage in range(stages)
            for turn in range(self.virtual_stages)
            for layer in range(piece)
        ]

    def _joined_over_step(self, weight: jax.Array, layout: WeightLayout) -> jax.Array:
        if not layout.per_step:
            return weight
        return all_gather(weight, layout.per_step, layout.dim, layout.axes)

    def _own_layers(self, stack: jax.Array, layout: WeightLayout) -> jax.Array:
        """[all layers, ...] as stored -> [virtual stages, layers of a piece, ...] of this stage."""
        stacked = _stacked(layout)
        if "pipe" in layout.per_step:
            own = all_to_all(stack, ("pipe",), 0, stacked.dim, stacked.axes)
        else:
            count = self.num_layers // self.sharding.size("pipe")
            first = jax.lax.axis_index("pipe") * count
            own = jax.lax.dynamic_slice_in_dim(stack, first, count)
        if "data" in layout.per_step:
            own = all_gather(own, ("data",), stacked.dim, stacked.axes)
        return own.reshape(self.virtual_stages, -1, *own.shape[1:])

    def _all_layers(self, own: jax.Array, layout: WeightLayout) -> jax.Array:
        """The inverse of `_own_layers`: [own layers, ...] -> [all layers, ...] as stored."""
        stacked = _stacked(layout)
        narrow = own.astype(self.sharding.grad_reduce_dtype)
        if "pipe" in layout.per_step:
            whole = all_to_all(narrow, ("pipe",), stacked.dim, 0, stacked.axes)
        else:
            whole = all_gather(narrow, ("pipe",), 0, stacked.axes)
        return whole.astype(own.dtype)

    def _summed(self, gradient: jax.Array, layout: WeightLayout, over_pipe: bool) -> jax.Array:
        """The sum over all devices that saw other tokens, split as it is stored."""
        others = {"data", "fsdp", "context"} | ({"pipe"} if over_pipe else set())
        pending = [
            axis
            for axis in MANUAL_AXES
            if axis in others and axis not in layout.per_use and self.sharding.size(axis) > 1
        ]
        scattered = [axis for axis in layout.per_step if axis in pending]
        whole = [axis for axis in pending if axis not in scattered]
        if not pending:
            return gradient
        narrow = gradient.astype(self.sharding.grad_reduce_dtype)
        if scattered:
            narrow = reduce_scatter(narrow, scattered, layout.dim, layout.axes)
        if whole:
            narrow = all_reduce(narrow, whole, layout.axes)
        return narrow.astype(gradient.dtype)


def _stacked(layout: WeightLayout) -> WeightLayout:
    """The layout of several layers' weights stacked along a first dimension."""
    return WeightLayout(("layers", *layout.axes), layout.dim + 1, layout.per_use, layout.per_step)
