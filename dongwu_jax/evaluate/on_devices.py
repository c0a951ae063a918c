"""Running a loaded model over sequences, on all of its devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dongwu_jax.interop.loaded_model import LoadedModel
from dongwu_jax.models.attention import choose_attention, make_attention
from dongwu_jax.models.llama import Llama
from dongwu_jax.models.parameters import Parameters, bind, logical_axes, parameter_tree
from dongwu_jax.parallel.context import Attend
from dongwu_jax.parallel.mesh import MANUAL_AXES
from dongwu_jax.parallel.sharding import local_to

# Of (model, tokens [batch, length], something of each sequence, attention): arrays whose first
# dimension is batch.
Compute = Callable[[Llama, jax.Array, jax.Array, Attend], Any]


_TOKENS_AT_ONCE = 8192  # on a device, unless a single sequence is longer


def rows_for(sequences: int, length: int, devices: int) -> int:
    """How many of so many sequences one call shall take, a multiple of the devices."""
    of_a_device = min(-(-sequences // devices), max(1, _TOKENS_AT_ONCE // length))
    return of_a_device * devices


class OnDevices:
    """A program that gives each device of a model its own sequences.

    By hand, as in training: cuDNN's attention cannot be split by the compiler.
    """

    def __init__(self, model: LoadedModel, compute: Compute) -> None:
        self._parameters = model.parameters
        self._mesh = model.sharding.mesh
        self._rows = model.rows
        self._program = jax.jit(self._split(model, compute))

    def __call__(self, tokens: np.ndarray, other: np.ndarray) -> Any:
        """What `compute` makes of sequences, on the host.

        Args:
            tokens: int32 [batch, length]; batch is a multiple of the model's devices.
            other: int32 [batch, ...].
        """
        placed = jax.device_put((tokens, other), self._rows)
        return jax.tree.map(np.asarray, self._program(self._parameters, *placed))

    def _split(self, model: LoadedModel, compute: Compute) -> Callable[..., Any]:
        config, sharding = model.config, model.sharding
        platform = self._mesh.devices.flat[0].platform
        attend = make_attention(choose_attention("auto", config, model.dtype, platform), sharding)

        def local(parameters: Parameters, tokens: jax.Array, other: jax.Array) -> Any:
            with local_to(sharding), jax.default_matmul_precision(model.matmul_precision):
                return compute(bind(config, parameters), tokens, other, attend)

        axes = logical_axes(config)
        weights = parameter_tree({name: sharding.manual_spec(axes[name]) for name in axes})
        return jax.shard_map(
            local,
            mesh=self._mesh,
            in_specs=(weights, self._rows.spec, self._rows.spec),
            out_specs=self._rows.spec,
            axis_names=set(MANUAL_AXES),
            check_vma=False,
        )
