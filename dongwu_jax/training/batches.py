"""Which rows of a batch this process supplies, and how its arrays become one global batch."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
import numpy as np
from jax.sharding import NamedSharding
from numpy.typing import DTypeLike

from dongwu_jax.config import RunConfig
from dongwu_jax.parallel.sharding import LogicalSharding

# The sequence is whole on every device: tokens are small, and each takes its positions itself.
BATCH_AXES = ("micro_batches", "batch", "whole_length")


class BatchLayout:
    """The shape of a global batch, [micro_batches, batch, length], and where its parts lie.

    Args:
        entries: arrays with one dimension more: how many entries each position has, and of what.
    """

    def __init__(
        self,
        config: RunConfig,
        sharding: LogicalSharding,
        entries: Mapping[str, tuple[int, np.dtype]] = MappingProxyType({}),
    ):
        device_count = sharding.mesh.devices.size
        self.accumulation_steps = config.accumulation_steps(device_count)
        rows = config.training.global_batch_size // self.accumulation_steps
        self.shape = (self.accumulation_steps, rows, config.data.sequence_length)
        self.sharding: NamedSharding = sharding.named(BATCH_AXES, self.shape)
        self._entries = entries
        self._packed = config.data.format == "chat"

    def local_rows(self) -> list[int]:
        """Rows of the batch axis that live on this process's devices, in order."""
        rows: set[int] = set()
        for index in self.sharding.addressable_devices_indices_map(self.shape).values():
            assert index is not None
            rows.update(range(*index[1].indices(self.shape[1])))
        return sorted(rows)

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows, [micro_batches, local rows, length, ...], as global arrays."""
        return {
            name: jax.make_array_from_process_local_data(
                self.sharding, local, (*self.shape, *local.shape[3:])
            )
            for name, local in batch.items()
        }

    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and sharding of a batch, to compile against."""
        dtypes: dict[str, DTypeLike] = {
            "tokens": np.int32,
            "labels": np.int32,
            "loss_mask": np.float32,
        }
        if self._packed:
            dtypes |= {"segments": np.int32, "positions": np.int32}
        whole = {name: self._abstract(self.shape, dtype) for name, dtype in dtypes.items()}
        return whole | {
            name: self._abstract((*self.shape, count), dtype)
            for name, (count, dtype) in self._entries.items()
        }

    def _abstract(self, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.sharding)
