"""From a run's settings and its devices to mesh and rules."""

from collections.abc import Sequence

import jax

from dongwu_jax.config import RunConfig
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.mesh import make_mesh
from dongwu_jax.parallel.sharding import LogicalSharding, resolve_rules

_RING_RULES = {
    "attention_length": ("context",),
    "attention_heads": ("tensor",),
    "attention_kv_heads": ("tensor",),
}


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
        rules |= _RING_RULES
    return LogicalSharding(make_mesh(shape, devices), rules, config.precision.grad_reduce_dtype)
