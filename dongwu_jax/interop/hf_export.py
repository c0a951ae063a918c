"""Writing a Hugging Face folder that transformers and vLLM load as it is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.data.tokenizers import load_fitting_tokenizer
from dongwu_jax.interop.hf import HuggingFaceSource
from dongwu_jax.interop.hf_config import (
    Json,
    hugging_face_config,
    parse_hugging_face_config,
    read_json,
)
from dongwu_jax.interop.hf_tokenizer import write_hugging_face_tokenizer
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


@dataclass(frozen=True)
class _Stored:
    """A tensor as the folder holds it."""

    name: str
    shape: tuple[int, ...]
    tensor: Tensor | None  # ours; None: zeros

    def values(self, read: ReadTensor, dtype: str) -> np.ndarray:
        """Its values in the stored dtype, without padding rows of the vocabulary."""
        if self.tensor is None:
            return np.zeros(self.shape, DTYPES[dtype])
        kept = tuple(slice(size) for size in self.tensor.shape)
        return cast(self.tensor.to_torch(read(self.tensor.name)[kept]), dtype, self.name)


@dataclass
class HuggingFaceTarget:
    """A Hugging Face folder to write; padding rows of the vocabulary are left out."""

    config: ModelConfig
    dtype: str  # of the stored weights, a key of `DTYPES`
    tokenizer: Path | None = None  # None: the folder gets none
    max_shard_bytes: int = DEFAULT_SHARD_BYTES  # of a file; a larger tensor gets its own
    weights: WeightFiles = "safetensors"

    def files(self) -> list[PlannedFile]:
        """The weight files, from sizes alone."""
        return [
            PlannedFile(file, [(stored.name, stored.shape) for stored in shard])
            for file, shard in self._shards()
        ]

    def write(self, folder: Path, read: ReadTensor, progress: Progress) -> None:
        """Write config, tokenizer and weights into an existing empty folder, then check them.

        Raises:
            UserError: the tokenizer is damaged, or larger than the model's vocabulary, or a value
                does not fit the dtype.
        """
        tokenizer, config = self.tokenizer, self.config
        generation = _generation_settings(tokenizer, config)
        ids = {name: generation.get(name) for name in _TOKEN_IDS}
        exported = hugging_face_config(config, self.dtype, ids)
        _write_json(folder / "config.json", exported)
        if tokenizer is not None:
            write_hugging_face_tokenizer(tokenizer, folder, config.max_position_embeddings)
        _write_json(folder / "generation_config.json", generation)
        shards = self._shards()
        for file, shard in shards:
            self._write_shard(folder / file, shard, read, progress)
        if len(shards) > 1:
            _write_json(folder / f"{_file_name(self.weights)}.index.json", self._index(shards))
        _check(folder, exported, config)

    def _write_shard(
        self, path: Path, shard: Sequence[_Stored], read: ReadTensor, progress: Progress
    ) -> None:
        planned = {stored.name: stored.shape for stored in shard}
        with path.open("wb") as file:
            writer: SafetensorsWriter | TorchFileWriter
            if self.weights == "safetensors":
                writer = SafetensorsWriter(file, list(planned.items()), self.dtype)
            else:
                dtype = DTYPES[self.dtype]
                tree = {name: PendingTensor(shape, dtype) for name, shape in planned.items()}
                writer = TorchFileWriter(file, tree)
            for stored in shard:
                values = stored.values(read, self.dtype)
                writer.write(values)
                progress(values.nbytes)
            writer.close()

    def _shards(self) -> list[tuple[str, list[_Stored]]]:
        """What each file holds: tensors in order, as many as there is room for."""
        shards: list[list[_Stored]] = [[]]
        room = self.max_shard_bytes
        for stored in _stored_tensors(self.config):
            size = self._num_bytes(stored)
            if shards[-1] and size > room:
                shards.append([])
                room = self.max_shard_bytes
            shards[-1].append(stored)
            room -= size
        if len(shards) == 1:
            return [(_file_name(self.weights), shards[0])]
        part = "-{:05}-of-" + f"{len(shards):05}"
        return [
            (_file_name(self.weights, part.format(number)), shard)
            for number, shard in enumerate(shards, 1)
        ]

    def _index(self, shards: Sequence[tuple[str, Sequence[_Stored]]]) -> Json:
        """Which file holds each tensor."""
        total = sum(self._num_bytes(stored) for _, shard in shards for stored in shard)
        return {
            "metadata": {"total_size": total},
            "weight_map": {stored.name: file for file, shard in shards for stored in shard},
        }

    def _num_bytes(self, stored: _Stored) -> int:
        return prod(stored.shape) * DTYPES[self.dtype].itemsize


def _file_name(weights: WeightFiles, part: str = "") -> str:
    stem, suffix = _NAMES[weights]
    return f"{stem}{part}.{suffix}"


def _stored_tensors(config: ModelConfig) -> list[_Stored]:
    tensors = model_tensors(config.model_copy(update={"padded_vocab_size": None}))
    stored = [_Stored(t.hugging_face, t.torch_shape, t) for t in tensors]
    if config.qkv_bias:  # Hugging Face's attention_bias means one on the output too
        stored += [
            _Stored(f"model.layers.{n}.self_attn.o_proj.bias", (config.hidden_size,), None)
            for n in range(config.num_layers)
        ]
    return stored


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
        return ids | read_json(tokenizer / "generation_config.json")
    if (tokenizer / "config.json").is_file():  # of a whole model
        model = read_json(tokenizer / "config.json")
        ids |= {name: model[name] for name in _TOKEN_IDS if model.get(name) is not None}
    return {"_from_model_config": True} | ids


def _write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
