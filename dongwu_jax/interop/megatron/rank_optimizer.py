"""The optimizer state in a rank's file: which weight each numbered entry belongs to.

torch numbers parameters group by group. Megatron has a group of matrices, with weight decay, and
one of norms and biases, without; within a group parameters come in the order in which the model
registers them, which is that of its state dict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dongwu_jax.interop.torch_files.reader import StoredArray

_NO_STATE = "the checkpoint holds no optimizer state (saved with --no-save-optim, or converted)"
_BUCKETS = (
    "the distributed optimizer keeps them in buckets that fit one layout only (save with "
    "--ckpt-format torch_dist --dist-ckpt-optim-fully-reshardable to carry them)"
)


class MomentsUnavailableError(Exception):
    """Why the moments of a checkpoint cannot be carried over, in words for the log."""


@dataclass(frozen=True)
class ParameterState:
    """What Adam keeps of one rank's part of a stored tensor, in the tensor's own shape."""

    exp_avg: StoredArray
    exp_avg_sq: StoredArray
    master: StoredArray | None  # None: the weight itself is float32


def parameter_states(
    tree: Mapping[str, Any], weights: Mapping[str, StoredArray]
) -> dict[str, ParameterState]:
    """Each weight's optimizer state, by the weight's stored name.

    Args:
        tree: the file's content.
        weights: the file's weights by stored name, in the order of the file.

    Raises:
        MomentsUnavailableError: there is none, or any doubt which entry belongs to which weight.
    """
    optimizer = tree.get("optimizer")
    if not isinstance(optimizer, Mapping):
        raise MomentsUnavailableError(_NO_STATE)
    adam = optimizer.get("optimizer", optimizer)
    if not isinstance(adam, Mapping) or not adam.get("state"):
        raise MomentsUnavailableError(_BUCKETS)
    try:
        return _matched(adam, optimizer.get("fp32_from_fp16_params"), weights)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise MomentsUnavailableError(
            f"its optimizer state has an unknown layout ({type(error).__name__}: {error})"
        ) from None


def _matched(
    adam: Mapping[str, Any], masters: Sequence | None, weights: Mapping[str, StoredArray]
) -> dict[str, ParameterState]:
    state, groups = adam["state"], adam["param_groups"]
    names = _names_of_groups(state, groups, weights)
    states = {}
    for position, (group, members) in enumerate(zip(groups, names, strict=True)):
        kept = [None] * len(members) if masters is None else masters[position]
        for number, name, master in zip(group["params"], members, kept, strict=True):
            entry = ParameterState(state[number]["exp_avg"], state[number]["exp_avg_sq"], master)
            _check_entry(name, entry, weights[name])
            states[name] = entry
    if len(states) != len(weights) or len(state) != len(weights):
        raise ValueError(f"{len(state)} entries for {len(weights)} weights")
    _check_order(states, weights)
    return states


def _names_of_groups(
    state: Mapping[int, Any],
    groups: Sequence[Mapping[str, Any]],
    weights: Mapping[str, StoredArray],
) -> list[list[str]]:
    """The weights of each group, in the order of its entries."""
    kinds = []  # whether each group is of matrices
    for group in groups:
        found = {len(state[number]["exp_avg"].shape) > 1 for number in group["params"]}
        if len(found) > 1:
            raise ValueError("a parameter group mixes matrices and vectors")
        kinds.append(found.pop() if found else None)
    if kinds.count(True) > 1 or kinds.count(False) > 1:
        raise ValueError("matrices or vectors are spread over several parameter groups")
    return [
        [name for name, weight in weights.items() if (len(weight.shape) > 1) == kind]
        if kind is not None
        else []
        for kind in kinds
    ]


def _check_entry(name: str, entry: ParameterState, weight: StoredArray) -> None:
    for stored in (entry.exp_avg, entry.exp_avg_sq, entry.master):
        if stored is not None and (stored.shape, stored.dtype) != (weight.shape, np.float32):
            raise ValueError(f"the entry of {name} is {stored}, the weight {weight}")
    if entry.master is None and weight.dtype != np.float32:
        raise ValueError(f"{name} is {weight.dtype.name} and has no float32 master")


def _check_order(states: Mapping[str, ParameterState], weights: Mapping[str, StoredArray]) -> None:
    """Shapes can be alike, so where there are masters, those of norms must round to the weights."""
    for name, entry in states.items():
        weight = weights[name]
        if entry.master is None or len(weight.shape) > 1:
            continue
        if not np.array_equal(entry.master.read().astype(weight.dtype), weight.read()):
            raise ValueError(f"the float32 master of {name} does not round to the weight")
