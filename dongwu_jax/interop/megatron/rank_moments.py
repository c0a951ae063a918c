"""Adam's state in a Megatron checkpoint of torch format, put together from all ranks."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from dongwu_jax.interop.megatron.rank_optimizer import (
    MomentsUnavailableError,
    ParameterState,
    parameter_states,
)
from dongwu_jax.interop.megatron.shards import Shard
from dongwu_jax.interop.megatron.source import MegatronSource
from dongwu_jax.interop.torch_files.reader import StoredArray, read_torch_file

_States = Mapping[tuple[Path, str], ParameterState]  # by file and stored name


class RankMoments:
    """Adam's state, laid out and divided as the weights are (`OptimizerMoments`)."""

    def __init__(self, source: MegatronSource):
        """Find each weight's state in each rank's file; no values are read.

        Raises:
            MomentsUnavailableError: there is none, or any doubt which belongs to which weight.
            UserError: a file is damaged.
        """
        states = _all_states(source)
        self._exp_avg = _with_values(source, states, lambda state: state.exp_avg)
        self._exp_avg_sq = _with_values(source, states, lambda state: state.exp_avg_sq)
        self._master = _with_values(source, states, lambda state: state.master)

    def names(self) -> list[str]:
        """Our names of all tensors."""
        return self._exp_avg.names()

    def exp_avg(self, name: str) -> np.ndarray:
        """The first moment, float32."""
        return self._exp_avg.read(name)

    def exp_avg_sq(self, name: str) -> np.ndarray:
        """The second moment, float32."""
        return self._exp_avg_sq.read(name)

    def master(self, name: str) -> np.ndarray:
        """The float32 weights, which in a float32 run are the model's own."""
        return self._master.read(name)


def rank_moments(source: MegatronSource) -> RankMoments | str:
    """Adam's state of a checkpoint in torch format, or the reason why it cannot be had."""
    try:
        return RankMoments(source)
    except MomentsUnavailableError as error:
        return str(error)


def _all_states(source: MegatronSource) -> _States:
    files: dict[Path, dict[str, StoredArray]] = {}
    for shards in source.weights.shards.values():  # in the order of the files
        for shard in shards:
            files.setdefault(shard.file, {})[shard.name] = shard.array
    return {
        (file, name): state
        for file, weights in files.items()
        for name, state in parameter_states(read_torch_file(file), weights).items()
    }


def _with_values(
    source: MegatronSource,
    states: _States,
    choose: Callable[[ParameterState], StoredArray | None],
) -> MegatronSource:
    """The source with other values in place of the weights, of the same shapes."""

    def chosen(shard: Shard) -> Shard:
        return replace(shard, array=choose(states[shard.file, shard.name]) or shard.array)

    weights = copy.copy(source.weights)
    weights.shards = {
        meaning: [chosen(shard) for shard in shards]
        for meaning, shards in source.weights.shards.items()
    }
    return source.with_weights(weights)
