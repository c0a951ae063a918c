"""Reading a Megatron-LM checkpoint in torch format, of any generation, naming and layout."""

import copy
from pathlib import Path

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.megatron.arguments import (
    ReadArguments,
    WeightFacts,
    check_supported,
    read_arguments,
)
from dongwu_jax.interop.megatron.folders import find_iteration_folder
from dongwu_jax.interop.megatron.shards import Meaning, Shard, ShardedWeights, read_rank_files
from dongwu_jax.interop.megatron.stages import MegatronLayout
from dongwu_jax.interop.megatron.tensors import PackedTensor, QkvOrder, packed_tensors
from dongwu_jax.interop.megatron.tokenizer_folder import find_tokenizer
from dongwu_jax.interop.same_values import same_values
from dongwu_jax.interop.targets import DTYPES
from dongwu_jax.interop.tensors import (
    common_dtype,
    halves_from_pairs,
    mixed_dtype_notes,
    model_tensors,
)

_NAMINGS = {
    "legacy": "legacy names",
    "mcore": "mcore names (local)",
    "mcore_te": "mcore names (Transformer Engine)",
    "megatron_llama": "Megatron-LLaMA names",
}


class MegatronSource:
    """A Llama in rank files of Megatron, complete and of the right shapes.

    Attributes:
        config: the architecture; may be corrected by the user, without effect on `read`.
        notes: what was assumed because the checkpoint does not say.
        iteration: steps done; None: `release`, weights without a history.
        consumed_samples: training samples used up; None when not told.
        weights: where the values of each stored tensor lie.
    """

    format = "megatron"

    def __init__(self, path: Path):
        """Read every file's structure and check names, shapes and dtypes; no values are read yet.

        Args:
            path: folder of a run (with a tracker file), or of one iteration.

        Raises:
            UserError: something is missing, damaged, inconsistent or unsupported.
        """
        self.path = path
        folder = find_iteration_folder(path)
        files = read_rank_files(folder)
        check_supported(files[0, 0].args, files[0, 0].path)
        self.weights = ShardedWeights(folder, files)
        read = self._read_arguments()
        self.config: ModelConfig = read.config
        dtypes = [shards[0].array.dtype for shards in self.weights.shards.values()]
        self.dtype = common_dtype(dtypes)
        cut = self._cut_rows(read.config)
        self.notes = [*read.notes, *cut, *mixed_dtype_notes(dtypes)]
        self.consumed_samples = read.consumed_samples
        self.iteration = None if folder.is_release else self.weights.first.iteration
        self._pairs = read.rotary_interleaved
        self._tied = read.config.tie_word_embeddings
        self._tensors = {tensor.name: tensor for tensor in model_tensors(read.config)}
        packed = packed_tensors(read.config, self.weights.naming, self._qkv_order())
        self._packed = {part: tensor for tensor in packed for part in tensor.parts}
        self._check_tensors(packed)
        self._ready: dict[str, np.ndarray] = {}  # of the packed tensor that was read last

    @property
    def description(self) -> str:
        """One line for people."""
        weights = self.weights
        virtual = f" V={weights.virtual_pipeline}" if weights.virtual_pipeline > 1 else ""
        state = "release" if self.iteration is None else f"iteration {self.iteration}"
        return (
            f"Megatron checkpoint, {_NAMINGS[weights.naming]}, T={weights.tensor_parallel} "
            f"P={weights.pipeline_parallel}{virtual}, {state}"
        )

    @property
    def layout(self) -> MegatronLayout:
        """Whose names its tensors have, and over how many ranks they lie."""
        weights = self.weights
        return MegatronLayout(
            weights.naming,
            weights.tensor_parallel,
            weights.pipeline_parallel,
            weights.virtual_pipeline,
        )

    @property
    def tokenizer(self) -> Path | None:
        """The folder `tokenizer` beside the weights, or above them."""
        return find_tokenizer(self.weights.folder.path)

    def with_weights(self, weights: ShardedWeights) -> "MegatronSource":
        """The same model with other values of the same shapes, such as an optimizer's."""
        other = copy.copy(self)
        other.weights, other._ready = weights, {}
        return other

    def names(self) -> list[str]:
        """Our names of all tensors."""
        return list(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """One tensor by our name, in our layout, in the dtype in which it is stored.

        Raises:
            UserError: a file cannot be read, or the copies of a tied embedding differ.
        """
        if name not in self._ready:
            self._ready = {}  # before more is read
            self._ready = self._read_packed(self._packed[name])
        return self._ready.pop(name)

    def stored(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Name (file first), shape and dtype of every stored tensor."""
        return self.weights.stored()

    def close(self) -> None:
        """Forget what was read; files are only open while they are read."""
        self._ready = {}

    def _shards(self, meaning: Meaning) -> list[Shard]:
        return self.weights.shards[meaning]

    def _read_packed(self, packed: PackedTensor) -> dict[str, np.ndarray]:
        """Ours by name, from all ranks' parts."""
        if packed.row.kind == "embedding" and self._tied:
            self._check_tied()
        shards = self._shards((packed.row.kind, packed.layer))
        stored = packed.join((shard.array.read() for shard in shards), self._ranks)
        if packed.row.kind == "embedding":
            stored = stored[: packed.shape[0]]
        parts = packed.unpack(stored)
        return {name: self._ours(name, values) for name, values in parts.items()}

    def _ours(self, name: str, values: np.ndarray) -> np.ndarray:
        tensor = self._tensors[name]
        if self._pairs and tensor.rotated_heads is not None:
            values = halves_from_pairs(values, tensor.rotated_heads)
        return tensor.from_torch(values)

    @property
    def _ranks(self) -> int:
        return self.weights.tensor_parallel

    def _read_arguments(self) -> ReadArguments:
        weights, first = self.weights, self.weights.first
        _check_parallelism(weights)
        shards = weights.shards
        if ("embedding", None) not in shards:
            raise UserError(f"{first.path}: holds no embedding (word_embeddings)")
        facts = WeightFacts(
            vocab_rows=self._vocab_rows(),
            has_head=("head", None) in shards,
            head_is_own=weights.naming == "megatron_llama",
            qkv_bias=any(kind == "qkv_bias" for kind, _ in shards),
        )
        read = read_arguments(first.args, facts, first.path)
        if read.config.num_layers != weights.num_layers:
            raise UserError(
                f"{first.path}: args.num_layers={read.config.num_layers}, but the "
                f"{weights.pipeline_parallel} pipeline stages hold {weights.num_layers} layers; "
                "a stage is missing, or comes from another checkpoint"
            )
        return read

    def _vocab_rows(self) -> int:
        """Rows that embedding and head have both: some old converters pad only the embedding."""
        rows = self._rows("embedding", self._ranks)
        padded = getattr(self.weights.first.args, "padded_vocab_size", None)
        if padded is not None and padded != rows:
            raise UserError(
                f"{self.weights.first.path}: args.padded_vocab_size={padded!r}, but the ranks' "
                f"embeddings have {rows} rows together; a rank is missing, or not of this model"
            )
        if ("head", None) not in self.weights.shards:
            return rows
        whole = self.weights.naming == "megatron_llama"
        return min(rows, self._rows("head", 1 if whole else self._ranks))

    def _cut_rows(self, config: ModelConfig) -> list[str]:
        rows = self._rows("embedding", self._ranks)
        if rows == config.vocab_rows:
            return []
        kept = config.vocab_rows
        return [f"the embedding has {rows} rows and the head {kept}: the first {kept} are kept"]

    def _rows(self, kind: str, ranks: int) -> int:
        shard = self._shards((kind, None))[0]
        if len(shard.array.shape) != 2:
            raise UserError(
                f"{shard.file}: {shard.name} has shape {shard.array.shape}, not that of a matrix"
            )
        return ranks * shard.array.shape[0]

    def _qkv_order(self) -> QkvOrder:
        """How rows of query, key and value lie, which depends on the age of the code."""
        weights, version = self.weights, self.weights.first.version
        if weights.naming == "megatron_llama":
            order: QkvOrder = "sections"
        elif weights.naming != "legacy" or version >= 2:
            return "groups"
        else:
            order = "channels" if version >= 1 else "sections"
        if self.config.kv_heads != self.config.num_heads:
            raise UserError(
                f"{weights.first.path}: has grouped queries (num_query_groups="
                f"{self.config.kv_heads}), which {_NAMINGS[weights.naming]} with "
                f"checkpoint_version={version:g} cannot have"
            )
        return order

    def _check_tensors(self, packed: list[PackedTensor]) -> None:
        for tensor in packed:
            meaning = (tensor.row.kind, tensor.layer)
            if meaning not in self.weights.shards:
                where = "" if tensor.layer is None else f" of layer {tensor.layer}"
                raise UserError(
                    f"{self.weights.folder.path}: no file holds {tensor.row.kind}{where} "
                    f"({tensor.stored_name(tensor.layer)})"
                )
            shape = tensor.shard_shape(self._ranks)
            if tensor.row.kind == "embedding":  # may have more rows than the head
                shape = (self._rows("embedding", 1), *shape[1:])
            for shard in self._shards(meaning):
                _check_shard(shard, shape)

    def _check_tied(self) -> None:
        """A pipeline's last stage holds a copy of the embedding, which must be one."""
        for kind in ("head", "tied_head"):
            copies = self.weights.shards.get((kind, None), [])
            for repeated, shard in zip(copies, self._shards(("embedding", None)), strict=False):
                if not same_values(repeated.array.read(), shard.array.read()):
                    raise UserError(
                        f"{repeated.file}: {repeated.name} differs from {shard.name} of "
                        f"{shard.file}, although args says that they are tied "
                        "(untie_embeddings_and_output_weights is off)"
                    )


def _check_shard(shard: Shard, shape: tuple[int, ...]) -> None:
    if shard.array.shape != shape:
        raise UserError(
            f"{shard.file}: {shard.name} has shape {shard.array.shape}, args and the number of "
            f"ranks ask for {shape}"
        )
    if shard.array.dtype.name not in DTYPES:
        raise UserError(
            f"{shard.file}: {shard.name} is stored as {shard.array.dtype.name}; only "
            f"{', '.join(DTYPES)} can be read"
        )


def _check_parallelism(weights: ShardedWeights) -> None:
    """The folders must be as many as the arguments say."""
    sizes = {
        "tensor_model_parallel_size": weights.tensor_parallel,
        "pipeline_model_parallel_size": weights.pipeline_parallel,
    }
    for field, found in sizes.items():
        told = getattr(weights.first.args, field, None)
        if told is not None and told != found:
            raise UserError(
                f"{weights.folder.path}: args.{field}={told!r}, but the mp_rank_* folders are "
                f"those of {found}; restore the missing folders, or remove those that do not belong"
            )
