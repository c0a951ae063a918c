"""Reading a Hugging Face folder: `config.json` and weights, one tensor at a time."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object
from dongwu_jax.interop.hf_config import parse_hugging_face_config
from dongwu_jax.interop.hf_quantized import (
    FLOAT_DTYPES,
    QuantizedTensor,
    StoredTensor,
    with_scales,
)
from dongwu_jax.interop.quantization_config import read_quantization_config
from dongwu_jax.interop.safetensors_files import read_safetensors
from dongwu_jax.interop.same_values import same_values
from dongwu_jax.interop.tensors import common_dtype, mixed_dtype_notes, model_tensors
from dongwu_jax.interop.torch_files.reader import read_state_dict

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # as transformers prefers them
_LONGEST_NAME = 200
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


class HuggingFaceSource:
    """A Llama in a Hugging Face folder, complete and of the right shapes.

    Quantized weights are read as the products of values and scales, in float32.

    Attributes:
        quantization: of the stored weights; None: they are not quantized.
    """

    format = "hf"
    iteration: int | None = None
    consumed_samples: int | None = None

    def __init__(self, path: Path):
        """Read the headers and check every name, shape and dtype; no weights are read yet.

        Raises:
            UserError: something is missing, unexpected or unsupported.
        """
        self.path = path
        fields = read_json_object(path / "config.json")
        self.config = parse_hugging_face_config(fields, path / "config.json")
        self.quantization = read_quantization_config(fields, path / "config.json")
        self._tensors = {tensor.name: tensor for tensor in model_tensors(self.config)}
        files = _weight_files(path)
        self._in_files, self._places = _read_files(files)
        self._stored = self._in_files
        if self.quantization is not None:
            self._stored = with_scales(self._in_files, self._places, self.quantization)
        self._check_tensors()
        kind = "safetensors" if files[0].suffix == ".safetensors" else "torch"
        count = f"{len(files)} {kind} {'file' if len(files) == 1 else 'files'}"
        self.description = f"Hugging Face folder, {count}"
        stored = [self._stored[tensor.hugging_face] for tensor in self._tensors.values()]
        self.dtype = common_dtype(tensor.dtype for tensor in stored)
        self.notes = mixed_dtype_notes(
            tensor.dtype for tensor in stored if not isinstance(tensor, QuantizedTensor)
        )
        if self.quantization is not None:
            self.description += f", {self.quantization} (compressed-tensors)"
            self.notes.append(
                f"{self.quantization} weights are read as float32, value times scale; activations, "
                "which vLLM quantizes too, are not quantized here"
            )

    @property
    def tokenizer(self) -> Path | None:
        """The folder itself when it holds a tokenizer."""
        found = any((self.path / name).is_file() for name in _TOKENIZER_FILES)
        return self.path if found else None

    def names(self) -> list[str]:
        """Our names of all tensors."""
        return list(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """One tensor by our name, in our layout, in the dtype in which it is stored."""
        tensor = self._tensors[name]
        return tensor.from_torch(self._stored[tensor.hugging_face].read())

    def stored(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and dtype of every stored tensor."""
        return [(name, array.shape, array.dtype.name) for name, array in self._in_files.items()]

    def close(self) -> None:
        """Nothing stays open between reads."""

    def _check_tensors(self) -> None:
        wanted = {t.hugging_face: t.torch_shape for t in self._tensors.values()}
        for name, shape in wanted.items():
            if name not in self._stored:
                raise UserError(f"{self.path}: tensor {name} is missing from the weights")
            found = self._stored[name]
            if found.shape != shape:
                raise UserError(
                    f"{self._places[name]}: tensor {name} has shape {found.shape}, "
                    f"config.json asks for {shape}"
                )
            if found.dtype.name not in FLOAT_DTYPES:
                raise UserError(
                    f"{self._places[name]}: tensor {name} is stored as {found.dtype.name}; "
                    f"only {', '.join(FLOAT_DTYPES)} can be read"
                )
        for name in self._stored.keys() - wanted.keys():
            self._check_extra(name)

    def _check_extra(self, name: str) -> None:
        """Accept only tensors that change nothing."""
        if name.endswith("rotary_emb.inv_freq"):
            return
        if name.endswith("o_proj.bias") and self.config.qkv_bias:
            if self._stored[name].read().any():
                raise UserError(
                    f"{self._places[name]}: {name} is not zero; a bias on the attention output "
                    "is not supported"
                )
            return
        if name == "lm_head.weight" and self.config.tie_word_embeddings:
            embedding = self._stored["model.embed_tokens.weight"].read()
            if not same_values(self._stored[name].read(), embedding):
                raise UserError(
                    f"{self.path}: config.json says tie_word_embeddings, but lm_head.weight "
                    "differs from model.embed_tokens.weight; set tie_word_embeddings to false"
                )
            return
        raise UserError(f"{self._places[name]}: tensor {name} has no place in a Llama of ours")


def is_hugging_face_folder(path: Path) -> bool:
    """Whether `path` is a folder with a `config.json`."""
    return (path / "config.json").is_file()


def _weight_files(path: Path) -> list[Path]:
    """The one file, or those that an index names."""
    for name in _WEIGHT_FILES:
        if (path / name).is_file():
            return [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            return _indexed_files(index)
    raise UserError(
        f"{path}: holds no weights: expected {' or '.join(_WEIGHT_FILES)}, or the index of their "
        f"parts ({_WEIGHT_FILES[0]}.index.json)"
    )


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: weight_map is missing")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or len(name) > _LONGEST_NAME:
            raise UserError(f"{index}: {name!r:.100} is not the name of a file beside it")
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent / name}: is missing, {index.name} names it")
    return [index.parent / name for name in names]


def _read_files(files: list[Path]) -> tuple[dict[str, StoredTensor], dict[str, Path]]:
    """Every tensor, and the file that holds it, from the files themselves."""
    stored: dict[str, StoredTensor] = {}
    places: dict[str, Path] = {}
    for file in files:
        found: Mapping[str, StoredTensor] = (
            read_state_dict(file) if file.suffix == ".bin" else read_safetensors(file)
        )
        for name, array in found.items():
            if name in places and not name.endswith("inv_freq"):
                raise UserError(f"{file}: tensor {name} stands in {places[name].name} too")
            stored[name], places[name] = array, file
    return stored, places
