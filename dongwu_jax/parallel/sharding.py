"""Logical axes to mesh axes: one table, overridable, checked.

Model code names the meaning of each dimension ("heads", "mlp", "batch"); the rules say which mesh
axes split it. Changing a layout means changing a rule, never the model.
"""

import difflib
import functools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dongwu_jax.errors import UserError
from dongwu_jax.parallel.mesh import MANUAL_AXES, MESH_AXES

LogicalAxes = tuple[str, ...]
Rules = dict[str, tuple[str, ...]]

# How weights, their gradients and the optimizer state are stored. `embed` is the dimension that
# fsdp, context and pipe split; adding data splits the optimizer state over replicas (ZeRO-1).
WEIGHT_RULES: Rules = {
    "vocab": ("tensor",),
    "embed": ("fsdp", "context", "pipe"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "norm": (),
    "adapter_embed": (),
}
# `length` is the sequence inside feed-forward and loss, `residual_length` that of the residual
# stream between blocks (Megatron's sequence parallelism), `attention_length` that of attention.
ACTIVATION_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "residual_length": ("context", "tensor"),
    "attention_length": (),
    "attention_heads": ("tensor", "context"),
    "attention_kv_heads": ("tensor", "context"),
    "hidden": (),
}
DEFAULT_RULES: Rules = WEIGHT_RULES | ACTIVATION_RULES
# Dimensions that no rule splits.
_UNSPLIT: Rules = dict.fromkeys(
    (
        "layers",
        "micro_batches",
        "whole_length",
        "each_head",
        "each_pair",
        "each_entry",
        "teacher_hidden",
        "adapter_rank",
    ),
    (),
)
# `tensor` must not split these: softmax and scores are computed on one device.
_WHOLE_IN_ATTENTION = ("attention_length", "head_dim")
HEADS_IN_ATTENTION = ("attention_heads", "attention_kv_heads")
# The axes that may split one dimension of a weight, in the order in which they do.
STORAGE_ORDER = ("fsdp", "context", "data", "pipe")


def resolve_rules(overrides: Mapping[str, Sequence[str] | str | None]) -> Rules:
    """The default rules with the user's overrides on top.

    Raises:
        UserError: an override names an unknown logical or mesh axis, or is impossible.
    """
    rules = dict(DEFAULT_RULES)
    for name, axes in overrides.items():
        if name not in rules:
            close = difflib.get_close_matches(name, rules, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(rules)}"
            raise UserError(f"sharding.rules: unknown logical axis {name!r}; {hint}")
        chosen = (axes,) if isinstance(axes, str) else tuple(axes or ())
        for axis in chosen:
            if axis not in MESH_AXES:
                raise UserError(
                    f"sharding.rules.{name}: unknown mesh axis {axis!r}; "
                    f"mesh axes are {', '.join(MESH_AXES)}"
                )
        _check_manual_axes(name, chosen)
        rules[name] = chosen
    for in_attention in HEADS_IN_ATTENTION:  # as the weights that make them
        if in_attention not in overrides and "tensor" not in rules["heads"]:
            rules[in_attention] = tuple(a for a in rules[in_attention] if a != "tensor")
        _check_heads(in_attention, rules)
    return rules | _UNSPLIT


def _check_heads(in_attention: str, rules: Rules) -> None:
    """A device must have the keys and values of its query heads."""
    if ("tensor" in rules[in_attention]) != ("tensor" in rules["heads"]):
        raise UserError(
            f"sharding.rules.{in_attention}={list(rules[in_attention])}: `tensor` must split it "
            f"exactly where it splits heads, and sharding.rules.heads={list(rules['heads'])}; "
            f"leave {in_attention} out, then it follows heads"
        )


def _check_manual_axes(name: str, chosen: tuple[str, ...]) -> None:
    """What the training step writes out by hand is not a matter of rules."""
    manual = tuple(axis for axis in chosen if axis in MANUAL_AXES)
    if name in _WHOLE_IN_ATTENTION and "tensor" in chosen:
        raise UserError(
            f"sharding.rules.{name}={list(chosen)}: attention needs it whole; split heads over "
            "`tensor` instead"
        )
    if name in ACTIVATION_RULES:
        fixed = tuple(axis for axis in ACTIVATION_RULES[name] if axis in MANUAL_AXES)
        if manual != fixed:
            raise UserError(
                f"sharding.rules.{name}={list(chosen)}: {name} is always split over "
                f"{list(fixed)}; only `tensor` can be added or left out"
            )
        return
    if manual and "tensor" in chosen:
        raise UserError(
            f"sharding.rules.{name}={list(chosen)}: `tensor` splits a dimension of a weight alone; "
            "give the other axes to another dimension"
        )
    order = [axis for axis in STORAGE_ORDER if axis in manual]
    if list(manual) != order:
        raise UserError(f"sharding.rules.{name}={list(chosen)}: write the axes in order: {order}")


@dataclass(frozen=True)
class LogicalSharding:
    """A mesh and the rules that map logical axes onto it."""

    mesh: Mesh
    rules: Rules
    grad_reduce_dtype: str = "float32"  # in which gradients are summed over devices

    def spec(self, axes: LogicalAxes) -> PartitionSpec:
        """Which mesh axes split each dimension.

        Raises:
            UserError: two dimensions of one array map to the same mesh axis of size above 1.
        """
        entries = [self.mesh_axes(name) for name in axes]
        used: dict[str, str] = {}
        for name, entry in zip(axes, entries, strict=True):
            for mesh_axis in entry:
                if mesh_axis in used:
                    raise UserError(
                        f"sharding.rules: {used[mesh_axis]} and {name} both map to mesh axis "
                        f"{mesh_axis}, but they are dimensions of one array {axes}; "
                        "change one of the two rules"
                    )
                used[mesh_axis] = name
        return PartitionSpec(*(entry or None for entry in entries))

    def named(self, axes: LogicalAxes, shape: Sequence[int]) -> NamedSharding:
        """The sharding of an array with these logical axes.

        Raises:
            UserError: a dimension does not divide by the mesh axes that split it.
        """
        spec = self.spec(axes)
        for name, size in zip(axes, shape, strict=True):
            mesh_axes = self.mesh_axes(name)
            shards = math.prod(self.mesh.shape[mesh_axis] for mesh_axis in mesh_axes)
            if size % shards:
                raise UserError(
                    f"{name}={size} is not divisible by its {shards} shards (mesh axes "
                    f"{' x '.join(mesh_axes)}); change the mesh, or sharding.rules.{name}"
                )
        return NamedSharding(self.mesh, spec)

    def mesh_axes(self, name: str) -> tuple[str, ...]:
        """The mesh axes that really split a logical axis here."""
        return tuple(axis for axis in self.rules[name] if self.mesh.shape[axis] > 1)

    def tensor_spec(self, axes: LogicalAxes) -> PartitionSpec:
        """Which dimensions `tensor` splits: all that is left to say where the rest is manual."""
        split = ["tensor" in self.mesh_axes(name) for name in axes]
        if sum(split) > 1:
            self.spec(axes)  # says which two
        return PartitionSpec(*("tensor" if here else None for here in split))

    def check_divides(self, axes: LogicalAxes, shape: Sequence[int]) -> None:
        """Whether `tensor` divides the dimensions that it splits.

        Raises:
            UserError: it does not; naming both numbers.
        """
        for name, entry, size in zip(axes, self.tensor_spec(axes), shape, strict=True):
            if entry and size % self.size("tensor"):
                raise UserError(
                    f"{name}={size} is not divisible by mesh.tensor={self.size('tensor')}; change "
                    f"one of them, or sharding.rules.{name}"
                )

    def manual_spec(self, axes: LogicalAxes) -> PartitionSpec:
        """Which of the manual mesh axes split each dimension."""
        entries = (tuple(a for a in self.mesh_axes(name) if a in MANUAL_AXES) for name in axes)
        return PartitionSpec(*(entry or None for entry in entries))

    def size(self, *mesh_axes: str) -> int:
        """The product of the sizes of some mesh axes."""
        return math.prod(self.mesh.shape[axis] for axis in mesh_axes)

    @property
    def replicated(self) -> NamedSharding:
        """Every device holds the whole array."""
        return NamedSharding(self.mesh, PartitionSpec())


_LOCAL: ContextVar[LogicalSharding | None] = ContextVar("local_sharding", default=None)


@contextmanager
def local_to(sharding: LogicalSharding) -> Iterator[None]:
    """While a program is traced whose manual axes are those of `MANUAL_AXES`.

    Arrays in it are this device's part along those axes, and whole along `tensor`.
    """
    token = _LOCAL.set(sharding)
    try:
        yield
    finally:
        _LOCAL.reset(token)


def current_sharding() -> LogicalSharding | None:
    """That of the enclosing `local_to`; None where nothing is sharded."""
    return _LOCAL.get()


@dataclass(frozen=True)
class Activation:
    """An activation that a traced program fixes the layout of."""

    where: str  # the function that makes it
    axes: LogicalAxes
    shape: tuple[int, ...]  # on one device along the manual axes, whole along tensor
    dtype: str


_RECORD: ContextVar[list[Activation] | None] = ContextVar("recorded_activations", default=None)


@contextmanager
def recording() -> Iterator[list[Activation]]:
    """Note the layout of every activation of what is traced meanwhile."""
    activations: list[Activation] = []
    token = _RECORD.set(activations)
    try:
        yield activations
    finally:
        _RECORD.reset(token)


_PROGRAM = ("dongwu_jax.models", "dongwu_jax.training")


def record(where: str | None, x: jax.Array, axes: LogicalAxes) -> None:
    """Note an activation, if anybody is `recording`; `where` None: in the method that calls."""
    recorded = _RECORD.get()
    if recorded is not None:
        recorded.append(Activation(where or _calling_method(), axes, x.shape, x.dtype.name))


def _calling_method() -> str:
    """The innermost method of model or objective that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = frame.f_globals.get("__name__", "")
        name = frame.f_code.co_qualname
        if module.startswith(_PROGRAM) and "." in name and "<" not in name:
            return name.removesuffix(".__call__")
        frame = frame.f_back
    return ""


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Fix how `tensor` splits an activation, by its logical axes; outside `local_to`, a no-op.

    Raises:
        UserError: a dimension does not divide by the tensor shards.
    """
    record(None, x, axes)
    return _lay_out(x, axes)


def _lay_out(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    sharding = _LOCAL.get()
    if sharding is None or sharding.size("tensor") == 1:
        return x
    spec = sharding.tensor_spec(axes)
    sharding.check_divides(axes, x.shape)
    return jax.lax.with_sharding_constraint(x, spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def constrain_both_ways(x: jax.Array, axes: LogicalAxes, gradient_axes: LogicalAxes) -> jax.Array:
    """`constrain`, and lay out the gradient by `gradient_axes`.

    For what leaves a matrix product split: both products of the backward pass need the gradient
    whole, and join it once if it is whole before they take it.
    """
    return constrain(x, *axes)


def _constrain_forward(
    x: jax.Array, axes: LogicalAxes, gradient_axes: LogicalAxes
) -> tuple[jax.Array, None]:
    return constrain_both_ways(x, axes, gradient_axes), None


def _constrain_backward(
    axes: LogicalAxes, gradient_axes: LogicalAxes, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (_lay_out(gradient, gradient_axes),)


constrain_both_ways.defvjp(_constrain_forward, _constrain_backward)
