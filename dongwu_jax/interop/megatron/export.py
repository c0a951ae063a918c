"""Writing a Megatron-LM checkpoint in torch format, in any naming and layout."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.megatron.export_arguments import export_arguments
from dongwu_jax.interop.megatron.folders import (
    iteration_folder_name,
    rank_folder_name,
    write_tracker,
)
from dongwu_jax.interop.megatron.stages import (
    Chunk,
    MegatronLayout,
    check_layout,
    padded_vocab_size,
)
from dongwu_jax.interop.megatron.tensors import PackedTensor, packed_tensors
from dongwu_jax.interop.megatron.tokenizer_folder import copy_tokenizer
from dongwu_jax.interop.megatron.vocabulary import fit_rows
from dongwu_jax.interop.targets import DTYPES, PlannedFile, Progress, ReadTensor, cast
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.interop.torch_files.writer import PendingTensor, TorchFileWriter

__all__ = ["MegatronLayout", "MegatronTarget", "padded_vocab_size"]

_CHECKPOINT_VERSION = 3.0


@dataclass(frozen=True)
class StageTensor:
    """A stored tensor and its place in the files of one pipeline stage."""

    name: str  # nested keys joined by /
    packed: PackedTensor


@dataclass(frozen=True)
class MegatronTarget:
    """A Megatron checkpoint to be written: `iter_0000500` or `release`, and the tracker file.

    Attributes:
        config: the model; its tensors may have `vocab_rows` rows when they are read.
        dtype: of the stored weights, a key of `DTYPES`.
        layout: naming, and the number of ranks and stages.
        padded_vocab_size: rows of the embedding and the head in the files. Rows that the model
            lacks repeat its last real one, as Megatron's own converter has it.
        iteration: steps done; None: `release`, weights without a history.
        consumed_samples: training samples used up.
        tokenizer: its files are copied into the folder `tokenizer`; None: there is none.
    """

    config: ModelConfig
    dtype: str
    layout: MegatronLayout
    padded_vocab_size: int
    iteration: int | None = None
    consumed_samples: int = 0
    tokenizer: Path | None = None

    def files(self) -> list[PlannedFile]:
        """Every rank's file, from sizes alone.

        Raises:
            UserError: Megatron could not hold the model in this layout.
        """
        self._arguments()
        ranks, stages = self.layout.tensor_parallel, self.layout.pipeline_parallel
        planned = [self._planned(stage) for stage in range(stages)]
        return [
            PlannedFile(self._path(rank, stage), planned[stage])
            for stage in range(stages)
            for rank in range(ranks)
        ]

    def write(self, folder: Path, read: ReadTensor, progress: Progress) -> None:
        """Write all files into `folder`, each tensor read once a stage; the tracker comes last.

        Raises:
            UserError: Megatron could not hold the model, or a value does not fit the dtype.
        """
        arguments = self._arguments()
        reader = _PackedReader(self, read)
        for stage in range(self.layout.pipeline_parallel):
            self._write_stage(folder, stage, arguments, reader, progress)
        copy_tokenizer(self.tokenizer, folder)
        write_tracker(folder, self.iteration)

    def _write_stage(
        self, folder: Path, stage: int, arguments: object, reader: "_PackedReader", told: Progress
    ) -> None:
        """Write the files of all tensor parallel ranks of a stage side by side."""
        ranks = self.layout.tensor_parallel
        tree = self._tree(stage, arguments)
        with ExitStack() as opened:
            writers = []
            for rank in range(ranks):
                path = folder / self._path(rank, stage)
                path.parent.mkdir(parents=True)
                writers.append(TorchFileWriter(opened.enter_context(path.open("wb")), tree))
            for tensor in self._stage(stage):
                shards = tensor.packed.split(reader.read(tensor.packed), ranks)
                for writer, shard in zip(writers, shards, strict=True):
                    writer.write(shard)
                    told(shard.nbytes)
                del shards, shard  # before the next is read
            for writer in writers:
                writer.close()

    def _arguments(self) -> object:
        check_layout(self.config, self.layout, self.padded_vocab_size)
        return export_arguments(
            self.config,
            self.dtype,
            self.layout,
            self.padded_vocab_size,
            self.iteration,
            self.consumed_samples,
        )

    def _path(self, rank: int, stage: int) -> str:
        folder = rank_folder_name(rank, stage, self.layout.pipeline_parallel > 1)
        return f"{iteration_folder_name(self.iteration)}/{folder}/model_optim_rng.pt"

    def _planned(self, stage: int) -> list[tuple[str, tuple[int, ...]]]:
        ranks = self.layout.tensor_parallel
        return [(t.name, t.packed.shard_shape(ranks)) for t in self._stage(stage)]

    def _tree(self, stage: int, arguments: object) -> dict[str, Any]:
        """What a rank of a stage saves, tensors without values; the same for all its ranks."""
        tree: dict[str, Any] = {
            "args": arguments,
            "checkpoint_version": _CHECKPOINT_VERSION,
            "iteration": self.iteration or 0,
        }
        for name, shape in self._planned(stage):
            *parents, leaf = name.split("/")
            place = tree
            for parent in parents:
                place = place.setdefault(parent, {})
            place[leaf] = PendingTensor(shape, DTYPES[self.dtype])
        return tree

    def _stage(self, stage: int) -> list[StageTensor]:
        """The tensors of a stage, in the order in which its files hold them."""
        chunks = range(self.layout.virtual_pipeline)
        return [tensor for number in chunks for tensor in self._chunk((stage, number))]

    def _chunk(self, chunk: Chunk) -> Iterator[StageTensor]:
        key = f"model{chunk[1]}" if self.layout.virtual_pipeline > 1 else "model"
        layers = self.layout.layers(self.config.num_layers, chunk)
        for packed in self._packed():
            if packed.layer is None:
                mine = chunk == ((0, 0) if packed.row.kind == "embedding" else self._last)
                name = packed.stored_name(None)
            else:
                mine = packed.layer in layers
                name = packed.stored_name(packed.layer - layers.start)
            if mine:
                yield StageTensor(f"{key}/{name}", packed)
        if chunk == self._last and self._repeats_embedding():
            yield StageTensor(f"{key}/{self._tied_name()}", self._packed()[0])

    @property
    def _last(self) -> Chunk:
        return self.layout.last_chunk

    def _repeats_embedding(self) -> bool:
        return self.config.tie_word_embeddings and self.layout.pipeline_parallel > 1

    def _tied_name(self) -> str:
        """The last stage's name for its copy of a tied embedding."""
        legacy = self.layout.naming == "legacy"
        return "word_embeddings_for_head/weight" if legacy else "output_layer.weight"

    def _packed(self) -> list[PackedTensor]:
        if self.layout.naming != "megatron_llama":
            return packed_tensors(self._padded_config(), self.layout.naming)
        *others, head = packed_tensors(self._padded_config(), "megatron_llama", "sections")
        return [
            *others,
            replace(head, config=self._without_padding()),
        ]  # neither divided nor padded

    def _without_padding(self) -> ModelConfig:
        return self.config.model_copy(update={"padded_vocab_size": None})

    def _padded_config(self) -> ModelConfig:
        return self.config.model_copy(update={"padded_vocab_size": self.padded_vocab_size})


class _PackedReader:
    """Gives a model's tensors packed as Megatron stores them."""

    def __init__(self, target: MegatronTarget, read: ReadTensor):
        self._target, self._read_ours = target, read
        self._tensors = {tensor.name: tensor for tensor in model_tensors(target.config)}

    def read(self, packed: PackedTensor) -> np.ndarray:
        """The undivided stored tensor, in the target's dtype."""
        stored = packed.pack([self._part(name) for name in packed.parts])
        if packed.row.kind in ("embedding", "head"):
            stored = fit_rows(stored, self._target.config.vocab_size, packed.shape[0])
        return stored

    def _part(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        return cast(tensor.to_torch(self._read_ours(name)), self._target.dtype, name)
