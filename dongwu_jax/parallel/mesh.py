"""The device mesh: five named axes, the slowest network outermost."""

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

MESH_AXES = ("pipe", "data", "fsdp", "context", "tensor")

# The training step writes out its collectives over these axes; those over `tensor` are left to the
# compiler, which derives them from the rules.
MANUAL_AXES = ("pipe", "data", "fsdp", "context")


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices along the mesh axes.

    Args:
        shape: size of every axis of `MESH_AXES`; their product is the number of devices.
        devices: default all devices of all processes.
    """
    sizes = tuple(shape[axis] for axis in MESH_AXES)
    return jax.make_mesh(
        sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )
