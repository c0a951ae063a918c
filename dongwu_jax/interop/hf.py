"""Reading a Hugging Face folder: `config.json` and safetensors, one tensor at a time."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dongwu_jax.errors import UserError
from dongwu_jax.interop.hf_config import read_hugging_face_config, read_json
from dongwu_jax.interop.tensors import model_tensors

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_SINGLE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


class HuggingFaceSource:
    """A Llama in a Hugging Face folder, complete and of the right shapes."""

    format = "hf"

    def __init__(self, path: Path):
        """Open the files and check every name, shape and dtype; no values are read yet.

        Raises:
            UserError: something is missing, unexpected or unsupported.
        """
        self.path = path
        self.config = read_hugging_face_config(path / "config.json")
        self._tensors = {tensor.name: tensor for tensor in model_tensors(self.config)}
        self._files = {file: _open(file) for file in _weight_files(path)}
        self._places = _places(self._files)
        self._check_tensors()

    @property
    def dtype(self) -> str:
        """Format of the stored weights: that of the embedding."""
        name = self._tensors["embed_tokens"].hugging_face
        return _DTYPES[self._slice(name).get_dtype()]

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
        return tensor.from_torch(self._read_stored(tensor.hugging_face))

    def close(self) -> None:
        """Release the files."""
        self._files.clear()

    def _slice(self, stored_name: str) -> Any:  # the type has no public name
        return self._files[self._places[stored_name]].get_slice(stored_name)

    def _read_stored(self, stored_name: str) -> np.ndarray:
        file = self._places[stored_name]
        try:
            return self._files[file].get_tensor(stored_name)
        except SafetensorError as error:
            raise UserError(f"{file}: {stored_name} cannot be read: {error}") from None

    def _check_tensors(self) -> None:
        wanted = {t.hugging_face: t.torch_shape for t in self._tensors.values()}
        for name, shape in wanted.items():
            if name not in self._places:
                raise UserError(f"{self.path}: tensor {name} is missing from the weights")
            found = self._slice(name)
            if tuple(found.get_shape()) != shape:
                raise UserError(
                    f"{self._places[name]}: tensor {name} has shape {tuple(found.get_shape())}, "
                    f"config.json asks for {shape}"
                )
            if found.get_dtype() not in _DTYPES:
                raise UserError(
                    f"{self._places[name]}: tensor {name} is stored as {found.get_dtype()}; "
                    f"only {', '.join(_DTYPES)} can be read"
                )
        for name in self._places.keys() - wanted.keys():
            self._check_extra(name)

    def _check_extra(self, name: str) -> None:
        """Accept only tensors that change nothing."""
        if name.endswith("rotary_emb.inv_freq"):
            return
        if name.endswith("o_proj.bias") and self.config.qkv_bias:
            if self._read_stored(name).any():
                raise UserError(
                    f"{self._places[name]}: {name} is not zero; a bias on the attention output "
                    "is not supported"
                )
            return
        if name == "lm_head.weight" and self.config.tie_word_embeddings:
            embedding = self._read_stored("model.embed_tokens.weight")
            if not np.array_equal(self._read_stored(name), embedding):
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
    if (path / _INDEX).is_file():
        weight_map = read_json(path / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{path / _INDEX}: weight_map is missing")
        names = sorted(set(map(str, weight_map.values())))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise UserError(f"{path / _INDEX}: {outside[0]!r} is not the name of a file beside it")
        return [path / name for name in names]
    if (path / _SINGLE_FILE).is_file():
        return [path / _SINGLE_FILE]
    if any(path.glob("pytorch_model*.bin")):
        raise UserError(
            f"{path}: holds pytorch_model.bin, a pickle, which is not read; save it as safetensors "
            "(transformers: model.save_pretrained(folder, safe_serialization=True))"
        )
    raise UserError(f"{path}: holds neither {_SINGLE_FILE} nor {_INDEX}")


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read as safetensors: {error}") from None


def _places(files: dict[Path, safe_open]) -> dict[str, Path]:
    """Which file holds each tensor, from the files themselves."""
    return {name: file for file, opened in files.items() for name in opened.keys()}  # noqa: SIM118
