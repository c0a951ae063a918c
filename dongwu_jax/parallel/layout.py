"""From a run's settings and its devices to mesh and rules."""

from collections.abc import Sequence

import jax

from dongwu_jax.config import RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.mesh import make_mesh
from dongwu_jax.parallel.sharding import HEADS_IN_ATTENTION, LogicalSharding, Rules, resolve_rules


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


def _ring_rules(config: RunConfig, rules: Rules) -> Rules:
    """Ring attention's own rules: `context` splits the sequence instead of the heads.

    Raises:
        UserError: an override contradicts them.
    """
    changed: Rules = {"attention_length": ("context",)}
    for name in HEADS_IN_ATTENTION:
        changed[name] = tuple(axis for axis in rules[name] if axis != "context")
    for name, axes in changed.items():
        if name in config.sharding.rules and rules[name] != axes:
            raise UserError(
                f"sharding.rules.{name}={list(rules[name])}: ring attention "
                f"(sharding.context_attention={config.sharding.context_attention}) needs "
                f"{list(axes)}; leave the rule out, or set sharding.context_attention=ulysses"
            )
    return changed
