"""Writing a Hugging Face folder that transformers and vLLM load as it is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.data.tokenizers import load_fitting_tokenizer
from dongwu_jax.input_files import read_json_object
from dongwu_jax.interop.hf import HuggingFaceSource
from dongwu_jax.interop.hf_config import Json, hugging_face_config, parse_hugging_face_config
from dongwu_jax.interop.hf_quantized import scale_name
from dongwu_jax.interop.hf_tokenizer import write_hugging_face_tokenizer
from dongwu_jax.interop.quantization import (
    QUANTIZED_DTYPES,
    SCALE_DTYPE,
    Quantization,
    quantize,
)
from dongwu_jax.interop.quantization_config import quantization_config
from dongwu_jax.interop.safetensors_files import SafetensorsWriter
from dongwu_jax.interop.targets import DTYPES, PlannedFile, Progress, ReadTensor, cast
from dongwu_jax.interop.tensors import Tensor, model_tensors
from dongwu_jax.interop.torch_files.writer import PendingTensor, TorchFileWriter
from dongwu_jax.models.rope_frequencies import (
    inverse_frequencies,
    original_length,
)

DEFAULT_SHARD_BYTES = 5 * 10**9
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

WeightFiles = Literal["safetensors", "bin"]
_NAMES = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}


class _Stored(NamedTuple):
    """A tensor of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class _Exported:
    """One tensor of the model as a file holds it: in one piece, or as 8-bit values and scales."""

    name: str
    shape: tuple[int, ...]
    tensor: Tensor | None  # ours; None: zeros
    dtype: str  # a key of `DTYPES`
    quantization: Quantization | None  # None: stored in `dtype`

    @property
    def stored(self) -> list[_Stored]:
        """The tensors of the file."""
        if self.quantization is None:
            return [_Stored(self.name, self.shape, DTYPES[self.dtype])]
        return [
            _Stored(self.name, self.shape, QUANTIZED_DTYPES[self.quantization]),
            _Stored(scale_name(self.name), (self.shape[0], 1), SCALE_DTYPE),
        ]

    @property
    def num_bytes(self) -> int:
        """Of all of `stored`."""
        return sum(prod(stored.shape) * stored.dtype.itemsize for stored in self.stored)

    def values(self, read: ReadTensor) -> tuple[np.ndarray, ...]:
        """The values of each of `stored`, without padding rows of the vocabulary."""
        if self.tensor is None:
            return (np.zeros(self.shape, DTYPES[self.dtype]),)
        kept = tuple(slice(size) for size in self.tensor.shape)
        values = self.tensor.to_torch(read(self.tensor.name)[kept])
        if self.quantization is None:
            return (cast(values, self.dtype, self.name),)
        return quantize(values, self.quantization, self.name)


@dataclass
class HuggingFaceTarget:
    """A Hugging Face folder to write; padding rows of the vocabulary are left out."""

    config: ModelConfig
    dtype: str  # of the stored weights that are not quantized, a key of `DTYPES`
    tokenizer: Path | None = None  # None: the folder gets none
    max_shard_bytes: int = DEFAULT_SHARD_BYTES  # of a file; a larger tensor gets its own
    weights: WeightFiles = "safetensors"
    quantization: Quantization | None = None  # of the matrices of the blocks; needs safetensors

    def files(self) -> list[PlannedFile]:
        """The weight files, from sizes alone."""
        return [_planned(file, shard) for file, shard in self._shards()]

    def write(self, folder: Path, read: ReadTensor, progress: Progress) -> None:
        """Write config, tokenizer and weights into an existing empty folder, then check them.

        Raises:
            UserError: the tokenizer is damaged, or larger than the model's vocabulary, or a value
                does not fit the dtype, or one that is not finite is to be quantized.
        """
        tokenizer, config = self.tokenizer, self.config
        generation = _generation_settings(tokenizer, config)
        ids = {name: generation.get(name) for name in _TOKEN_IDS}
        exported = hugging_face_config(config, self.dtype, ids)
        if self.quantization is not None:
            exported["quantization_config"] = quantization_config(self.quantization)
        _write_json(folder / "config.json", exported)
        if tokenizer is not None:
            write_hugging_face_tokenizer(tokenizer, folder, config.max_position_embeddings)
        _write_json(folder / "generation_config.json", generation)
        shards = self._shards()
        for file, shard in shards:
            self._write_shard(folder / file, shard, read, progress)
        if len(shards) > 1:
            _write_json(folder / f"{_file_name(self.weights)}.index.json", self._index())
        _check(folder, exported, config)

    def _write_shard(
        self, path: Path, shard: Sequence[_Exported], read: ReadTensor, progress: Progress
    ) -> None:
        planned = _planned(path.name, shard)
        with path.open("wb") as file:
            writer: SafetensorsWriter | TorchFileWriter
            if self.weights == "safetensors":
                writer = SafetensorsWriter(file, planned.tensors, self.dtype, planned.dtypes)
            else:
                dtype = DTYPES[self.dtype]
                tree = {name: PendingTensor(shape, dtype) for name, shape in planned.tensors}
                writer = TorchFileWriter(file, tree)
            for exported in shard:
                for values in exported.values(read):
                    writer.write(values)
                    progress(values.nbytes)
            writer.close()

    def _shards(self) -> list[tuple[str, list[_Exported]]]:
        """What each file holds: tensors in order, as many as there is room for."""
        shards: list[list[_Exported]] = [[]]
        room = self.max_shard_bytes
        for exported in _exported_tensors(self.config, self.dtype, self.quantization):
            if shards[-1] and exported.num_bytes > room:
                shards.append([])
                room = self.max_shard_bytes
            shards[-1].append(exported)
            room -= exported.num_bytes
        if len(shards) == 1:
            return [(_file_name(self.weights), shards[0])]
        part = "-{:05}-of-" + f"{len(shards):05}"
        return [
            (_file_name(self.weights, part.format(number)), shard)
            for number, shard in enumerate(shards, 1)
        ]

    def _index(self) -> Json:
        """Which file holds each tensor."""
        files = self.files()
        return {
            "metadata": {"total_size": sum(file.num_bytes(self.dtype) for file in files)},
            "weight_map": {name: file.path for file in files for name, _ in file.tensors},
        }


def _file_name(weights: WeightFiles, part: str = "") -> str:
    stem, suffix = _NAMES[weights]
    return f"{stem}{part}.{suffix}"


def _planned(file: str, shard: Sequence[_Exported]) -> PlannedFile:
    stored = [(exported, stored) for exported in shard for stored in exported.stored]
    return PlannedFile(
        file,
        [(tensor.name, tensor.shape) for _, tensor in stored],
        {tensor.name: tensor.dtype for exported, tensor in stored if exported.quantization},
    )


def _exported_tensors(
    config: ModelConfig, dtype: str, quantization: Quantization | None
) -> list[_Exported]:
    tensors = model_tensors(config.model_copy(update={"padded_vocab_size": None}))
    exported = [
        _Exported(
            tensor.hugging_face,
            tensor.torch_shape,
            tensor,
            dtype,
            quantization if _is_matrix_of_block(tensor) else None,
        )
        for tensor in tensors
    ]
    if config.qkv_bias:  # Hugging Face's attention_bias means one on the output too
        width = (config.hidden_size,)
        names = (f"model.layers.{n}.self_attn.o_proj.bias" for n in range(config.num_layers))
        exported += [_Exported(name, width, None, dtype, None) for name in names]
    return exported


def _is_matrix_of_block(tensor: Tensor) -> bool:
    return tensor.layer is not None and len(tensor.torch_shape) == 2


def _check(folder: Path, exported: Json, config: ModelConfig) -> None:
    """Read the export back: every name and shape, the sizes, and the rotary frequencies.

    The frequencies must follow from the settings of transformers 4 alone and of 5 alone.

    Raises:
        RuntimeError: something is read as another value.
    """
    written = HuggingFaceSource(folder)
    written.close()
    for spelling in (("rope_theta", "rope_scaling"), ("rope_parameters",)):
        other = {"rope_theta", "rope_scaling", "rope_parameters"} - set(spelling)
        fields = {name: value for name, value in exported.items() if name not in other}
        read = parse_hugging_face_config(fields, folder / "config.json")
        ours, theirs = inverse_frequencies(config), inverse_frequencies(read)
        if not np.allclose(ours, theirs, rtol=1e-6, atol=0):
            raise RuntimeError(
                f"{folder}: {' and '.join(spelling)} are read as other rotary frequencies"
            )
    if _as_exported(written.config) != _as_exported(config):
        raise RuntimeError(f"{folder}: config.json is read as another model: {written.config}")


def _as_exported(config: ModelConfig) -> ModelConfig:
    """The config with everything resolved, and without what Hugging Face has no word for."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.type != "linear":
        original = {"original_max_position_embeddings": original_length(config)}
        scaling = scaling.model_copy(update=original)
    return config.model_copy(
        update={
            "rope_scaling": scaling,
            "num_kv_heads": config.kv_heads,
            "head_dim": config.width_per_head,
            "padded_vocab_size": None,
            "padded_vocab_in_softmax": False,
        }
    )


def _generation_settings(tokenizer: Path | None, config: ModelConfig) -> Json:
    """What `generation_config.json` is to hold: the tokenizer's own, which travels with it.

    A model may end a text with several tokens, of which its tokenizer knows one.
    """
    if tokenizer is None:
        return {"_from_model_config": True} | dict.fromkeys(_TOKEN_IDS)
    known = load_fitting_tokenizer(tokenizer, config.vocab_size)
    ids = {"bos_token_id": known.bos_id, "eos_token_id": known.eos_id, "pad_token_id": None}
    if (tokenizer / "generation_config.json").is_file():
        return ids | read_json_object(tokenizer / "generation_config.json")
    if (tokenizer / "config.json").is_file():  # of a whole model
        model = read_json_object(tokenizer / "config.json")
        ids |= {name: model[name] for name in _TOKEN_IDS if model.get(name) is not None}
    return {"_from_model_config": True} | ids


def _write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
