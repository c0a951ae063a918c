"""A Llama among the tensors of a torch distributed checkpoint: weights, or an optimizer state.

Blocks of one kind are stacked, `decoder.layers.mlp.linear_fc2.weight` `[layers, ...]`, or numbered,
`decoder.layers.3.mlp.linear_fc2.weight`. Gate and up are one tensor, all of gate first, or two
tensors, with the suffixes `_w` and `_v`. Names are Transformer Engine's in every checkpoint.
"""

import re
from dataclasses import dataclass

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.megatron.names import find_name
from dongwu_jax.interop.megatron.sharded_index import INDEX
from dongwu_jax.interop.megatron.sharded_tensors import ShardedTensors
from dongwu_jax.interop.megatron.tensors import PackedTensor, packed_tensors
from dongwu_jax.interop.targets import DTYPES
from dongwu_jax.interop.tensors import halves_from_pairs, model_tensors

_STACKED = re.compile(r"decoder\.layers\.(?!\d)")
_HALF = re.compile(r"(.*\.linear_fc1\.weight)_([wv])")
_OPTIMIZER = re.compile(r"(.*\.)?optimizer\..*")


@dataclass(frozen=True)
class _Place:
    """Where a packed tensor is: the keys whose rows follow each other, and the row of a stack."""

    keys: tuple[str, ...]
    stack_index: int | None


class ShardedModel:
    """The tensors of one model, checked against its configuration."""

    def __init__(
        self,
        shards: ShardedTensors,
        config: ModelConfig,
        rotary_interleaved: bool = False,
        prefix: str = "",
    ):
        """Find every tensor; no values are read.

        Args:
            rotary_interleaved: whether rows of query and key are in Meta's order within a head.
            prefix: before each key, e.g. `optimizer.state.exp_avg.`; empty for the weights.

        Raises:
            UserError: a tensor is missing, unknown, of the wrong shape or not of a float type.
        """
        self._shards = shards
        self._config = config
        self._rotary_interleaved = rotary_interleaved
        self._prefix = prefix
        self._places = _find_places(shards, prefix)
        self._tensors = {tensor.name: tensor for tensor in model_tensors(config)}
        packed = packed_tensors(config, "mcore_te")
        self._packed = {part: tensor for tensor in packed for part in tensor.parts}
        self._check(packed)
        self.dtypes = [
            np.dtype(shards.tensors[key].dtype)
            for place in self._places.values()
            for key in place.keys
        ]
        self._ready: dict[str, np.ndarray] = {}  # of the packed tensor that was read last

    def names(self) -> list[str]:
        """Our names of all tensors."""
        return list(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """One tensor by our name, in our layout, in the dtype in which it is stored.

        Raises:
            UserError: the values cannot be read.
        """
        if name not in self._ready:
            self._ready = {}  # before more is read
            packed = self._packed[name]
            self._ready = packed.unpack(self._read_packed(packed))
        tensor, values = self._tensors[name], self._ready.pop(name)
        if self._rotary_interleaved and tensor.rotated_heads is not None:
            values = halves_from_pairs(values, tensor.rotated_heads)
        return tensor.from_torch(values)

    def _read_packed(self, packed: PackedTensor) -> np.ndarray:
        place = self._place(packed)
        parts = []
        for key in place.keys:
            if place.stack_index is None:
                parts.append(self._shards.read(key))
                continue
            row = slice(place.stack_index, place.stack_index + 1)
            rest = (slice(0, size) for size in self._shards.tensors[key].shape[1:])
            parts.append(self._shards.read(key, (row, *rest))[0])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _place(self, packed: PackedTensor) -> _Place:
        kind, layer = packed.row.kind, packed.layer
        if (kind, layer) in self._places:
            return self._places[kind, layer]
        stacked = self._places.get((kind, None))
        if stacked is None:
            raise UserError(
                f"{self._shards.folder / INDEX}: {self._prefix}{packed.stored_name(layer)} is "
                "missing; the checkpoint is incomplete: save or copy it again"
            )
        return _Place(stacked.keys, layer)

    def _check(self, tensors: list[PackedTensor]) -> None:
        for packed in tensors:
            place = self._place(packed)
            for key in place.keys:
                self._check_tensor(key, self._stored_shape(packed, place))
        known = {packed.row.kind for packed in tensors}
        for (kind, layer), place in self._places.items():
            if kind not in known or (layer or 0) >= self._config.num_layers:
                raise UserError(
                    f"{self._shards.folder / INDEX}: {place.keys[0]} has no place in the model "
                    "that args describes; args and weights do not belong together"
                )

    def _stored_shape(self, packed: PackedTensor, place: _Place) -> tuple[int, ...]:
        """What the configuration asks for, of each of the keys."""
        rows, *rest = packed.shape
        layers = () if place.stack_index is None else (self._config.num_layers,)
        return (*layers, rows // len(place.keys), *rest)

    def _check_tensor(self, key: str, wanted: tuple[int, ...]) -> None:
        tensor = self._shards.tensors[key]
        if tensor.shape != wanted:
            raise UserError(
                f"{self._shards.folder / INDEX}: {key} has shape {tensor.shape}, args asks for "
                f"{wanted}; args and weights do not belong together"
            )
        if str(tensor.dtype) not in DTYPES:
            raise UserError(
                f"{self._shards.folder / INDEX}: {key} is stored as {tensor.dtype}; only "
                f"{', '.join(DTYPES)} can be read"
            )


def _find_places(shards: ShardedTensors, prefix: str) -> dict[tuple[str, int | None], _Place]:
    """Places by kind and layer; a stack of layers has no layer.

    Raises:
        UserError: a key has no place in a Llama.
    """
    found: dict[tuple[str, int | None], list[str]] = {}
    for key in shards.tensors:
        if not key.startswith(prefix) or (not prefix and _OPTIMIZER.fullmatch(key)):
            continue
        half = _HALF.fullmatch(key)
        name = (half[1] if half else key).removeprefix(prefix)
        stacked = _STACKED.match(name) is not None
        try:
            meaning = find_name(_STACKED.sub("decoder.layers.0.", name))
        except KeyError:
            raise UserError(
                f"{shards.folder / INDEX}: {key} has no place in a Llama; only Llama models are "
                "supported"
            ) from None
        if meaning is not None:
            layer = None if stacked else meaning.layer
            found.setdefault((meaning.kind, layer), []).append(key)
    return {where: _Place(_in_order(shards, keys), None) for where, keys in found.items()}


def _in_order(shards: ShardedTensors, keys: list[str]) -> tuple[str, ...]:
    """The key of a tensor; or those of its halves, gate (`_w`) before up (`_v`)."""
    ordered = tuple(sorted(keys, reverse=True))
    halves = [found[2] for key in ordered if (found := _HALF.fullmatch(key))]
    if (len(ordered) == 1 and not halves) or halves == ["w", "v"] == [k[-1] for k in ordered]:
        return ordered
    raise UserError(
        f"{shards.folder / INDEX}: {' and '.join(ordered)} do not make up one tensor; the "
        "checkpoint is damaged: save or copy it again"
    )
