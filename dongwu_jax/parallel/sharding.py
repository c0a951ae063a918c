"""Logical axes to mesh axes: one table, overridable, checked.

Model code names the meaning of each dimension ("heads", "mlp", "batch"); the rules say which mesh
axes split it. Changing a layout means changing a rule, never the model.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dongwu_jax.errors import UserError
from dongwu_jax.parallel.mesh import MESH_AXES

LogicalAxes = tuple[str, ...]
Rules = dict[str, tuple[str, ...]]

DEFAULT_RULES: Rules = {
    # weights
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "norm": (),
    # activations; micro batches are worked off one by one; "length" is the sequence outside
    # attention, "attention_length" inside it
    "micro_batches": (),
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "attention_length": (),
    "hidden": (),
}


def resolve_rules(overrides: Mapping[str, Sequence[str] | str | None]) -> Rules:
    """The default rules with the user's overrides on top.

    Raises:
        UserError: an override names an unknown logical or mesh axis.
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
        rules[name] = chosen
    return rules


@dataclass(frozen=True)
class LogicalSharding:
    """A mesh and the rules that map logical axes onto it."""

    mesh: Mesh
    rules: Rules

    def spec(self, axes: LogicalAxes) -> PartitionSpec:
        """Which mesh axes split each dimension.

        Raises:
            UserError: two dimensions of one array map to the same mesh axis of size above 1.
        """
        entries = [self._mesh_axes(name) for name in axes]
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
            mesh_axes = self._mesh_axes(name)
            shards = math.prod(self.mesh.shape[mesh_axis] for mesh_axis in mesh_axes)
            if size % shards:
                raise UserError(
                    f"{name}={size} is not divisible by its {shards} shards (mesh axes "
                    f"{' x '.join(mesh_axes)}); change the mesh, or sharding.rules.{name}"
                )
        return NamedSharding(self.mesh, spec)

    def _mesh_axes(self, name: str) -> tuple[str, ...]:
        """The mesh axes that really split a logical axis here."""
        return tuple(axis for axis in self.rules[name] if self.mesh.shape[axis] > 1)

    @property
    def replicated(self) -> NamedSharding:
        """Every device holds the whole array."""
        return NamedSharding(self.mesh, PartitionSpec())


_ACTIVE: ContextVar[LogicalSharding | None] = ContextVar("active_sharding", default=None)


@contextmanager
def use_sharding(sharding: LogicalSharding) -> Iterator[None]:
    """Make `constrain` follow this mesh and these rules while a program is traced."""
    token = _ACTIVE.set(sharding)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Fix the layout of an activation by its logical axes; outside `use_sharding`, a no-op."""
    sharding = _ACTIVE.get()
    if sharding is None:
        return x
    return jax.lax.with_sharding_constraint(x, sharding.named(axes, x.shape))
