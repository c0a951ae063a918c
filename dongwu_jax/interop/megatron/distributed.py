"""Reading a model from Megatron's distributed checkpoint, its default format since 2024."""

from pathlib import Path
from typing import Any

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.megatron.arguments import WeightFacts, read_arguments
from dongwu_jax.interop.megatron.folders import find_iteration_folder
from dongwu_jax.interop.megatron.moments import ShardedMoments, sharded_moments
from dongwu_jax.interop.megatron.sharded_index import INDEX
from dongwu_jax.interop.megatron.sharded_model import ShardedModel
from dongwu_jax.interop.megatron.sharded_tensors import COMPLETE_MARK, ShardedTensors
from dongwu_jax.interop.megatron.tokenizer_folder import find_tokenizer
from dongwu_jax.interop.tensors import common_dtype, mixed_dtype_notes
from dongwu_jax.interop.torch_files.reader import read_torch_file

COMMON_STATE = "common_state/shard_0_1"
COMMON_FILE = "common.pt"  # instead of the object, up to 2025

_EMBEDDING = "embedding.word_embeddings.weight"
_HEAD = "output_layer.weight"
_QKV_BIAS = ".self_attention.linear_qkv.bias"


def is_distributed_checkpoint(folder: Path) -> bool:
    """Whether an iteration's folder holds a distributed checkpoint, complete or not."""
    marks = (COMPLETE_MARK, INDEX, COMMON_FILE)
    return any((folder / name).is_file() for name in marks) or any(folder.glob("*.distcp"))


class TorchDistSource:
    """A Llama in a distributed checkpoint: the folder of a run, or that of one iteration.

    Attributes:
        config: the architecture, from the arguments of the run and the sizes of its weights.
        description: one line for people.
        notes: what was assumed because the checkpoint does not say.
        iteration: steps done; None for converted weights.
        consumed_samples: training samples seen; None when unknown.
        common: what is not a tensor: `args`, `opt_param_scheduler`, ..., as inert data.
    """

    format = "torch_dist"

    def __init__(self, path: Path):
        """Read the index and the arguments and check every shape; no values are read yet.

        Raises:
            UserError: something is missing, damaged, unexpected or unsupported.
        """
        self.path = path
        found = find_iteration_folder(path)
        self._shards = ShardedTensors(found.path)
        self.common = _read_common(self._shards)
        where = found.path / (COMMON_FILE if COMMON_STATE not in self._shards.objects else INDEX)
        arguments = read_arguments(self.common.get("args"), _weight_facts(self._shards), where)
        self.config: ModelConfig = arguments.config
        self.consumed_samples = arguments.consumed_samples
        self._rotary_interleaved = arguments.rotary_interleaved
        self._stored_config = arguments.config
        self._model = ShardedModel(self._shards, arguments.config, arguments.rotary_interleaved)
        self.notes = [*arguments.notes, *mixed_dtype_notes(self._model.dtypes)]
        self.iteration = None if found.is_release else _iteration(self.common, found.iteration)
        state = "release" if self.iteration is None else f"iteration {self.iteration}"
        self.description = f"Megatron distributed checkpoint (torch_dist), {state}"

    @property
    def dtype(self) -> str:
        """Format that keeps every stored weight."""
        return common_dtype(self._model.dtypes)

    @property
    def tokenizer(self) -> Path | None:
        """The folder `tokenizer` beside the weights, or above them."""
        return find_tokenizer(self._shards.folder)

    def names(self) -> list[str]:
        """Our names of all tensors."""
        return self._model.names()

    def read(self, name: str) -> np.ndarray:
        """One tensor by our name, in our layout, in the dtype in which it is stored."""
        return self._model.read(name)

    def stored(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Key, shape and dtype of every tensor of the checkpoint, optimizer state included."""
        return [
            (key, tensor.shape, str(tensor.dtype)) for key, tensor in self._shards.tensors.items()
        ]

    def moments(self) -> ShardedMoments | str:
        """Adam's state, or the reason why it cannot be had."""
        return sharded_moments(self._shards, self._stored_config, self._rotary_interleaved)

    def close(self) -> None:
        """Nothing stays open between reads."""


def _read_common(shards: ShardedTensors) -> dict[str, Any]:
    """What is not a tensor, from the object that holds it or, in older checkpoints, from a file."""
    if COMMON_STATE in shards.objects:
        common = shards.read_object(COMMON_STATE)
        where = shards.folder / INDEX
    else:
        where = shards.folder / COMMON_FILE
        if not where.is_file():
            raise UserError(
                f"{where}: is missing, and {INDEX} has no {COMMON_STATE} either, so the model's "
                "arguments are unknown; copy the whole folder"
            )
        common = read_torch_file(where)
    if not isinstance(common, dict):
        raise UserError(f"{where}: the common state is a {type(common).__name__}, not a dict")
    return common


def _weight_facts(shards: ShardedTensors) -> WeightFacts:
    embedding = shards.tensors.get(_EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(
            f"{shards.folder / INDEX}: {_EMBEDDING}, a matrix, is not in the checkpoint; only "
            "Llama models saved by Megatron are supported"
        )
    return WeightFacts(
        vocab_rows=embedding.shape[0],
        has_head=_HEAD in shards.tensors,
        head_is_own=False,
        qkv_bias=any(
            key.startswith("decoder.") and key.endswith(_QKV_BIAS) for key in shards.tensors
        ),
    )


def _iteration(common: dict[str, Any], folder_says: int | None) -> int | None:
    iteration = common.get("iteration")
    is_count = isinstance(iteration, int) and not isinstance(iteration, bool)
    return iteration if is_count else folder_says
