"""Whether all data-parallel replicas still hold the same weights, bit for bit.

They compute the same updates from the same sums; where one differs, a device or its memory is at
fault. Each device adds up the words of its own shards, every word times an odd number that depends
on its place, modulo 2**32: any change of one word changes the sum.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dongwu_jax.models.parameters import Parameters
from dongwu_jax.parallel.sharding import LogicalSharding
from dongwu_jax.training.faults.bad_steps import HardwareFaultError


class WeightCheck:
    """Compares the replicas of a run's weights."""

    def __init__(self, sharding: LogicalSharding, parameters: Parameters):
        """Compile nothing yet.

        Args:
            parameters: the weights, or their shapes, with their sharding.
        """
        self._mesh = sharding.mesh
        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, parameters)
        axes = tuple(self._mesh.axis_names)
        self._sums = jax.jit(
            jax.shard_map(
                lambda weights: _sum_of_words(weights).reshape([1] * len(axes)),
                mesh=self._mesh,
                in_specs=(specs,),
                out_specs=jax.sharding.PartitionSpec(*axes),
                check_vma=False,
            )
        )

    def check(self, step: int, parameters: Parameters, hosts: Mapping[int, str]) -> None:
        """Compare; a collective operation.

        Args:
            hosts: name of the host of each process.

        Raises:
            HardwareFaultError: replicas differ; naming those that are not as most are, or all.
        """
        sums = self._sums(parameters)
        if jax.process_count() > 1:
            sums = multihost_utils.process_allgather(sums, tiled=True)
        sums = np.moveaxis(np.asarray(sums), self._mesh.axis_names.index("data"), 0)
        devices = np.moveaxis(self._mesh.devices, self._mesh.axis_names.index("data"), 0)
        odd = [
            device
            for shard in np.ndindex(sums.shape[1:])
            for device in _odd_ones(sums[:, *shard], devices[:, *shard])
        ]
        if odd:
            names = sorted({f"{hosts.get(d.process_index, '?')} (device {d.id})" for d in odd})
            raise HardwareFaultError(
                f"step {step}: the data-parallel replicas no longer hold the same weights; of "
                f"others than most, or of none in common, are those on {', '.join(names)}. Stopped "
                "without saving; take the hosts out, and go on from a checkpoint of before: the "
                f"newest may have the fault in it"
            )


def _odd_ones(sums: np.ndarray, devices: np.ndarray) -> Sequence[jax.Device]:
    """The devices whose sum is not that of most; all, where none has a majority."""
    holders = defaultdict(list)
    for value, device in zip(sums.tolist(), devices.tolist(), strict=True):
        holders[value].append(device)
    most = max(holders.values(), key=len)
    if 2 * len(most) <= len(sums) and len(holders) > 1:
        return list(devices)
    return [device for group in holders.values() if group is not most for device in group]


def _sum_of_words(weights: Parameters) -> jax.Array:
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(weights)):
        words = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).reshape(-1)
        places = jax.lax.iota(jnp.uint32, words.size) + jnp.uint32(number * 7919)
        total += jnp.sum(words * (2 * places + 1), dtype=jnp.uint32)
    return total
