"""Writing a model as Megatron's distributed checkpoint, which any layout can load."""

import argparse
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.megatron.distributed import COMMON_FILE, COMMON_STATE
from dongwu_jax.interop.megatron.export_arguments import export_arguments
from dongwu_jax.interop.megatron.folders import iteration_folder_name, write_tracker
from dongwu_jax.interop.megatron.sharded_index import Shape
from dongwu_jax.interop.megatron.sharded_writer import (
    DATA_FILE,
    ShardedTensorsWriter,
    torch_file,
)
from dongwu_jax.interop.megatron.stages import MegatronLayout, check_layout
from dongwu_jax.interop.megatron.tensors import PackedTensor, packed_tensors
from dongwu_jax.interop.megatron.tokenizer_folder import copy_tokenizer
from dongwu_jax.interop.megatron.vocabulary import fit_rows
from dongwu_jax.interop.targets import PlannedFile, Progress, ReadTensor, cast
from dongwu_jax.interop.tensors import Tensor, model_tensors
from dongwu_jax.output_files import write_output_file

_LAYOUT = MegatronLayout(naming="mcore_te")  # undivided: Megatron divides it while loading

# How the keys are to be understood: layers stacked, gate and up one tensor.
_CONTENT = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}

# Megatron asks for the state of FP8 beside these, in each layer, and expects at least None.
_EXTRA_STATES = (
    "self_attention.linear_proj",
    "self_attention.linear_qkv",
    "self_attention.core_attention",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


@dataclass(frozen=True)
class TorchDistTarget:
    """A distributed checkpoint to be written: layers stacked, Transformer Engine's names.

    Attributes:
        config: the model; its tensors have `vocab_rows` rows when they are read.
        dtype: of the stored weights, a key of `DTYPES`.
        padded_vocab_size: rows of the embedding and the head in the files. Rows that the model
            lacks repeat its last real one, as Megatron's own converter has it.
        iteration: steps done; None or 0: `release`, weights without a history.
        consumed_samples: training samples used up.
        tokenizer: its files are copied into the folder `tokenizer`; None: there is none.
    """

    config: ModelConfig
    dtype: str
    padded_vocab_size: int
    iteration: int | None = None
    consumed_samples: int = 0
    tokenizer: Path | None = None

    def files(self) -> list[PlannedFile]:
        """The one weight file.

        Raises:
            UserError: Megatron's arguments cannot express the model.
        """
        self._arguments()
        shapes = {_key(packed): _whole_shape(packed) for packed in self._packed}
        return [PlannedFile(f"{self._folder_name}/{DATA_FILE}", list(shapes.items()))]

    def write(self, folder: Path, read: ReadTensor, progress: Progress) -> None:
        """Write the checkpoint into an existing empty folder, one tensor in memory at a time.

        Raises:
            UserError: a value does not fit the dtype, or Megatron cannot express the model.
        """
        common = {
            "args": self._arguments(),
            "checkpoint_version": 3.0,
            "iteration": self.iteration or 0,
            "content_metadata": _CONTENT,
        }
        inner = folder / self._folder_name
        inner.mkdir()
        copy_tokenizer(self.tokenizer, folder)
        write_output_file(inner / COMMON_FILE, torch_file(common))  # for versions up to core 0.16
        with ShardedTensorsWriter(inner) as writer:
            for packed in self._packed:
                self._write_tensor(writer, packed, read, progress)
            for key in _extra_state_keys(self.config.num_layers):
                writer.write_object(key, None)
            writer.write_object(COMMON_STATE, common)  # for later versions
        write_tracker(folder, self.iteration or None)

    @functools.cached_property
    def _packed(self) -> list[PackedTensor]:
        """The stored tensors, of the sizes that are written."""
        config = self.config.model_copy(update={"padded_vocab_size": self.padded_vocab_size})
        return packed_tensors(config, "mcore_te")

    @functools.cached_property
    def _tensors(self) -> dict[str, Tensor]:
        """Ours by name, of the sizes that are read."""
        return {tensor.name: tensor for tensor in model_tensors(self.config)}

    @property
    def _folder_name(self) -> str:
        return iteration_folder_name(self.iteration or None)  # Megatron refuses iteration 0

    def _arguments(self) -> argparse.Namespace:
        check_layout(self.config, _LAYOUT, self.padded_vocab_size)
        args = export_arguments(
            self.config,
            self.dtype,
            _LAYOUT,
            self.padded_vocab_size,
            self.iteration or None,
            self.consumed_samples,
        )
        args.ckpt_format = "torch_dist"
        args.use_dist_ckpt = True
        return args

    def _write_tensor(
        self,
        writer: ShardedTensorsWriter,
        packed: PackedTensor,
        read: ReadTensor,
        progress: Progress,
    ) -> None:
        key, shape = _key(packed), _whole_shape(packed)
        stack = () if packed.layer is None else (packed.layer,)
        for row, values in self._boxes(packed, read):
            box = np.ascontiguousarray(cast(values, self.dtype, key))
            offsets = (*stack, row, *(0 for _ in box.shape[1:]))
            writer.write(key, shape, offsets, box.reshape(*(1 for _ in stack), *box.shape))
            progress(box.nbytes)

    def _boxes(self, packed: PackedTensor, read: ReadTensor) -> Iterator[tuple[int, np.ndarray]]:
        """First row and values of a tensor's pieces: gate and up apart, as Megatron has them."""
        if packed.row.kind != "gate_up":
            yield 0, packed.pack([self._part(name, read) for name in packed.parts])
            return
        for number, name in enumerate(packed.parts):
            yield number * self.config.intermediate_size, self._part(name, read)

    def _part(self, name: str, read: ReadTensor) -> np.ndarray:
        """One of our tensors in torch's layout, with as many vocabulary rows as are written."""
        tensor = self._tensors[name]
        values = tensor.to_torch(read(name))
        if "vocab" in tensor.row.axes:
            values = fit_rows(values, self.config.vocab_size, self.padded_vocab_size)
        return values


def _key(packed: PackedTensor) -> str:
    """Name of a stored tensor; that of a stack lacks the layer's number."""
    name = packed.stored_name(packed.layer)
    if packed.layer is None:
        return name
    return name.replace(f"decoder.layers.{packed.layer}.", "decoder.layers.", 1)


def _whole_shape(packed: PackedTensor) -> Shape:
    """Of a stored tensor, all layers stacked."""
    layers = () if packed.layer is None else (packed.config.num_layers,)
    return (*layers, *packed.shape)


def _extra_state_keys(num_layers: int) -> Iterator[str]:
    for layer in range(num_layers):
        for module in _EXTRA_STATES:
            yield f"decoder.layers.{module}._extra_state/shard_{layer}_{num_layers}"
    yield "decoder.final_layernorm._extra_state/shard_0_1"
