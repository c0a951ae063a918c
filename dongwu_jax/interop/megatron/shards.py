"""The weights of all rank files of a Megatron checkpoint, by what they mean."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dongwu_jax.errors import UserError
from dongwu_jax.interop.megatron.arguments import check_supported
from dongwu_jax.interop.megatron.folders import IterationFolder, Rank, rank_files
from dongwu_jax.interop.megatron.names import FoundName, find_name
from dongwu_jax.interop.megatron.stages import Chunk, first_layers
from dongwu_jax.interop.megatron.tensors import Naming
from dongwu_jax.interop.torch_files.reader import StoredArray, read_torch_file

# What every rank's arguments must say alike: they decide what is computed.
_COMMON_FIELDS = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "group_query_attention",
    "num_query_groups",
    "kv_channels",
    "max_position_embeddings",
    "seq_length",
    "norm_epsilon",
    "layernorm_epsilon",
    "rotary_base",
    "rotary_seq_len_interpolation_factor",
    "rotary_interleaved",
    "orig_vocab_size",
    "padded_vocab_size",
    "untie_embeddings_and_output_weights",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
)

Meaning = tuple[str, int | None]
"""Kind of tensor, and its layer in the whole model."""


@dataclass(frozen=True)
class Shard:
    """One rank's part of a stored tensor."""

    file: Path
    name: str  # within the file, nested keys joined by /
    array: StoredArray


@dataclass(frozen=True)
class RankFile:
    """What a rank has saved, without its optimizer and random numbers."""

    path: Path
    args: object
    version: float  # checkpoint_version
    iteration: int | None
    chunks: list[dict[str, Any]]  # leaves by name, for each chunk of layers


class ShardedWeights:
    """Every rank's tensors, put together: which parts make up which tensor of the model.

    Attributes:
        tensor_parallel: ranks that divide a tensor.
        pipeline_parallel: stages that divide the layers.
        virtual_pipeline: chunks of layers in each stage.
        first: the file of rank 0 of the first stage, which speaks for all about everything else.
        shards: each tensor's parts, in order of rank.
        num_layers: those found, in all stages together.
    """

    def __init__(self, folder: IterationFolder, files: Mapping[Rank, RankFile]):
        """Find every rank's tensors.

        Args:
            files: as `read_rank_files` gives them.

        Raises:
            UserError: ranks do not fit together, or a tensor has no place in a Llama.
        """
        self.folder = folder
        self._files = files
        self.tensor_parallel = 1 + max(t for t, _ in self._files)
        self.pipeline_parallel = 1 + max(p for _, p in self._files)
        self.first = self._files[0, 0]
        self.virtual_pipeline = len(self.first.chunks)
        self._check_agreement()
        self.naming: Naming = _naming(name for name, _ in self._leaves())
        self.shards, self.num_layers = self._placed()

    def stored(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Name (file first), shape and dtype of every stored tensor."""
        return [
            (f"{file.path.relative_to(self.folder.path)}/{name}", leaf.shape, leaf.dtype.name)
            for file in self._files.values()
            for chunk in file.chunks
            for name, leaf in chunk.items()
            if isinstance(leaf, StoredArray)
        ]

    def _leaves(self) -> Iterator[tuple[str, Any]]:
        for file in self._files.values():
            for chunk in file.chunks:
                for name, leaf in chunk.items():
                    yield name.partition("/")[2], leaf

    def _check_agreement(self) -> None:
        first = self.first
        for file in self._files.values():
            for what in ("iteration", "version"):
                found, wanted = getattr(file, what), getattr(first, what)
                if found != wanted:
                    raise UserError(
                        f"{file.path}: is of {what} {found}, {first.path} of {wanted}; "
                        "ranks of different checkpoints are mixed"
                    )
            if len(file.chunks) != len(first.chunks):
                raise UserError(
                    f"{file.path}: holds {len(file.chunks)} chunks of layers, {first.path} holds "
                    f"{len(first.chunks)}; all must hold the same number"
                )
            _check_same_arguments(file, first)

    def _placed(self) -> tuple[dict[Meaning, list[Shard]], int]:
        """Parts by meaning, with layers numbered in the whole model, and the number of layers."""
        found = {
            (p, number): [_meanings(self._files[t, p], number) for t in range(self.tensor_parallel)]
            for p in range(self.pipeline_parallel)
            for number in range(self.virtual_pipeline)
        }
        counts = {chunk: _count_layers(ranks[0]) for chunk, ranks in found.items()}
        first = first_layers(counts)
        shards: dict[Meaning, list[Shard]] = {}
        for chunk, ranks in found.items():
            _check_same_names(ranks)
            for meaning, shard in ranks[0].items():
                place = _in_whole_model(meaning, chunk, first)
                if place in shards:
                    raise UserError(f"{shard.file}: {shard.name} is in {shards[place][0].file} too")
                shards[place] = [rank[meaning] for rank in ranks]
                _check_same_dtype(shards[place])
        return shards, sum(counts.values())


def read_rank_files(folder: IterationFolder) -> dict[Rank, RankFile]:
    """The structure of every rank's file, without values.

    Raises:
        UserError: a file is missing or damaged, or not Megatron's.
    """
    return {rank: _read_rank(path, folder) for rank, path in rank_files(folder.path).items()}


def _read_rank(path: Path, folder: IterationFolder) -> RankFile:
    tree = read_torch_file(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds a {type(tree).__name__}, not a Megatron checkpoint's dict")
    if "args" not in tree:
        raise UserError(f"{path}: has no args, which say what the model is; not Megatron's file")
    version = tree.get("checkpoint_version", 0)
    if not isinstance(version, int | float) or version < 0:
        raise UserError(f"{path}: checkpoint_version={version!r}; it must be a number such as 3.0")
    iteration = tree.get("iteration")
    if iteration is not None and not isinstance(iteration, int):
        raise UserError(f"{path}: iteration={iteration!r}; it must be a whole number")
    if None not in (iteration, folder.iteration) and iteration != folder.iteration:
        raise UserError(
            f"{path}: was saved at iteration {iteration}, its folder is named {folder.path.name}; "
            "restore the right file"
        )
    return RankFile(path, tree["args"], float(version), iteration, _chunks(tree, path))


def _chunks(tree: Mapping[Any, Any], path: Path) -> list[dict[str, Any]]:
    """`model`, or `model0`, `model1`, ... of a virtual pipeline, flattened."""
    keys = (
        ["model"]
        if "model" in tree
        else sorted(
            (key for key in tree if isinstance(key, str) and re.fullmatch(r"model\d+", key)),
            key=lambda key: int(key.removeprefix("model")),
        )
    )
    if not keys:
        raise UserError(f"{path}: holds no weights: neither the entry model nor model0")
    if len(keys) > 1 and keys != [f"model{number}" for number in range(len(keys))]:
        raise UserError(f"{path}: holds {', '.join(keys)}; they must count from model0 on")
    return [dict(_flattened(tree[key], key)) for key in keys]


def _flattened(tree: object, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from _flattened(value, f"{prefix}/{key}")


def _naming(names: Iterator[str]) -> Naming:
    all_names = set(names)
    if any(name.startswith("lm_head") for name in all_names):
        return "megatron_llama"
    if any(name.startswith("language_model") for name in all_names):
        return _legacy_naming(all_names)
    fused = any(name.endswith("linear_qkv.layer_norm_weight") for name in all_names)
    return "mcore_te" if fused else "mcore"


def _legacy_naming(names: set[str]) -> Naming:
    """Refuse what shares the names of 2023 but not the layout."""
    for name in names:
        if "layernorm_qkv" in name or "layernorm_mlp" in name:
            raise UserError(
                f"{name}: the old model class with Transformer Engine is unsupported; save it with "
                "--transformer-impl local first"
            )
    return "legacy"


def _meanings(file: RankFile, number: int) -> dict[FoundName, Shard]:
    found: dict[FoundName, Shard] = {}
    for name, leaf in file.chunks[number].items():
        try:
            meaning = find_name(name.partition("/")[2])
        except KeyError:
            raise UserError(f"{file.path}: {name} has no place in a Llama") from None
        if meaning is None:
            continue
        if not isinstance(leaf, StoredArray):
            raise UserError(f"{file.path}: {name} is a {type(leaf).__name__}, not a tensor")
        if meaning in found:
            raise UserError(f"{file.path}: {name} and {found[meaning].name} are the same tensor")
        found[meaning] = Shard(file.path, name, leaf)
    return found


def _count_layers(found: Mapping[FoundName, Shard]) -> int:
    """Layers of a chunk, which counts them from 0."""
    layers = {meaning.layer for meaning in found if meaning.layer is not None}
    if layers != set(range(len(layers))):
        file = next(iter(found.values())).file
        raise UserError(
            f"{file}: holds layers {', '.join(map(str, sorted(layers)))}; a stage's layers must "
            "count from 0 without a gap"
        )
    return len(layers)


def _check_same_names(ranks: list[dict[FoundName, Shard]]) -> None:
    """Every tensor parallel rank of a stage must hold a part of the same tensors."""
    for rank in ranks[1:]:
        for one, other in ((ranks[0], rank), (rank, ranks[0])):
            lacking = one.keys() - other.keys()
            if lacking:
                shard = one[min(lacking, key=str)]
                where = next((s.file for s in other.values()), "another rank")
                raise UserError(f"{shard.file}: holds {shard.name}, but {where} lacks it")


def _check_same_arguments(file: RankFile, first: RankFile) -> None:
    check_supported(file.args, file.path)
    for field in _COMMON_FIELDS:
        found, wanted = (getattr(one.args, field, None) for one in (file, first))
        if found != wanted:
            raise UserError(
                f"{file.path}: args.{field}={found!r}, but {wanted!r} in {first.path}; "
                "ranks of different models are mixed"
            )


def _check_same_dtype(shards: list[Shard]) -> None:
    first = shards[0]
    for shard in shards[1:]:
        if shard.array.dtype != first.array.dtype:
            raise UserError(
                f"{first.file}: {first.name} is stored as {first.array.dtype.name}, but as "
                f"{shard.array.dtype.name} in {shard.file}; ranks of different models are mixed"
            )


def _in_whole_model(meaning: FoundName, chunk: Chunk, first: Mapping[Chunk, int]) -> Meaning:
    layer = None if meaning.layer is None else meaning.layer + first[chunk]
    return meaning.kind, layer
