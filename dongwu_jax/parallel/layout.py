"""From a run's settings and its devices to mesh and rules."""

from collections.abc import Sequence
from dataclasses import replace

import jax

from dongwu_jax.config import ModelConfig, RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.mesh import make_mesh
from dongwu_jax.parallel.sharding import (
    HEADS_IN_ATTENTION,
    WEIGHT_RULES,
    LogicalSharding,
    Rules,
    resolve_rules,
)

_OF_A_TEACHER = ("fsdp", "context", "tensor")  # what is joined for every use, wherever that is


def make_sharding(config: RunConfig, devices: Sequence[jax.Device]) -> LogicalSharding:
    """The mesh and the rules of a run on these devices.

    Raises:
        UserError: the run does not fit on as many devices, or a rule is impossible.
    """
    try:
        config.check_devices(len(devices))
        shape = config.mesh_shape(len(devices))
    except ValueError as error:
        raise UserError(str(error)) from None
    rules = resolve_rules(config.sharding.rules)
    if config.context_attention(len(devices)) == "ring":
        rules |= _ring_rules(config, rules)
    return LogicalSharding(make_mesh(shape, devices), rules, config.precision.grad_reduce_dtype)


def teacher_sharding(
    config: RunConfig, sharding: LogicalSharding, model: ModelConfig
) -> LogicalSharding:
    """How a teacher's weights lie on the mesh of a run, and are used on its batches.

    As the student's do, but for `distillation.sharding_rules`, and whole over `pipe` and `data`:
    each pipeline stage holds all layers of it, since it sees micro batches of its own.

    Raises:
        UserError: a rule would split weights over axes that only training joins, or a size does not
            divide.
    """
    overrides = config.distillation.sharding_rules
    for name, axes in overrides.items():
        chosen = (axes,) if isinstance(axes, str) else tuple(axes or ())
        wrong = [axis for axis in chosen if axis not in _OF_A_TEACHER]
        if wrong or name not in WEIGHT_RULES:
            raise UserError(
                f"distillation.sharding_rules.{name}={list(chosen)}: a teacher's weights "
                f"({', '.join(WEIGHT_RULES)}) can be split over {', '.join(_OF_A_TEACHER)}"
            )
    own = resolve_rules(config.sharding.rules)
    shared = {name: [a for a in own[name] if a in _OF_A_TEACHER] for name in WEIGHT_RULES}
    resolved = resolve_rules(config.sharding.rules | shared | overrides)
    for name, size in (
        ("heads", model.num_heads),
        ("kv_heads", model.kv_heads),
        ("mlp", model.intermediate_size),
        ("vocab", model.vocab_rows),
        ("embed", model.hidden_size),
    ):
        shards = sharding.size(*resolved[name])
        if size % shards:
            raise UserError(
                f"distillation.teacher: its {name}={size} is not divisible by the {shards} shards "
                f"of {' x '.join(resolved[name])}; set distillation.sharding_rules={{{name}: null}}"
            )
    heads, context = model.kv_heads, sharding.size("context")
    if "context" in sharding.mesh_axes("attention_length"):
        resolved |= _without_context(resolved)
    elif context > 1 and heads % (context * sharding.size("tensor")):
        raise UserError(
            f"the teacher's {heads} key/value heads do not divide by mesh.context={context} x "
            f"mesh.tensor={sharding.size('tensor')}; set sharding.context_attention=ring"
        )
    return replace(sharding, rules=resolved)


def _without_context(rules: Rules) -> Rules:
    """What ring attention changes: `context` splits the sequence instead of the heads."""
    changed: Rules = {"attention_length": ("context",)}
    for name in HEADS_IN_ATTENTION:
        changed[name] = tuple(axis for axis in rules[name] if axis != "context")
    return changed


def _ring_rules(config: RunConfig, rules: Rules) -> Rules:
    """Ring attention's own rules.

    Raises:
        UserError: an override contradicts them.
    """
    changed = _without_context(rules)
    for name, axes in changed.items():
        if name in config.sharding.rules and rules[name] != axes:
            raise UserError(
                f"sharding.rules.{name}={list(rules[name])}: ring attention "
                f"(sharding.context_attention={config.sharding.context_attention}) needs "
                f"{list(axes)}; leave the rule out, or set sharding.context_attention=ulysses"
            )
    return changed
