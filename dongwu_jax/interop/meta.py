"""Reading Meta's own files: `params.json` and `consolidated.NN.pth`, one a model-parallel rank.

Ranks divide rows or columns of the matrices. Rows of query and key are ordered for rotary positions
that turn neighbours, (2i, 2i + 1), within a head.
"""

import re
from math import prod
from pathlib import Path

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.hf_config import Json
from dongwu_jax.interop.meta_params import context_length, model_config, read_params
from dongwu_jax.interop.tensors import (
    Tensor,
    common_dtype,
    halves_from_pairs,
    joined_shape,
    mixed_dtype_notes,
    model_tensors,
)
from dongwu_jax.interop.torch_files.reader import StoredArray, read_state_dict

_DTYPES = ("float64", "float32", "bfloat16", "float16")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_COLUMNS = ("attention.o_proj", "mlp.down_proj")
_EMBEDDING, _HEAD = "tok_embeddings.weight", "output.weight"
_QUERY, _GATE = "layers.0.attention.wq.weight", "layers.0.feed_forward.w1.weight"


class MetaSource:
    """A Llama in Meta's files, complete and of the right shapes."""

    format = "meta"
    iteration: int | None = None
    consumed_samples: int | None = None

    def __init__(self, path: Path):
        """Read `params.json` and the files' pickles, and check every name, shape and dtype.

        Of the weights only those of the embedding and the head are read, to see whether they are
        tied.

        Raises:
            UserError: something is missing, unexpected or unsupported.
        """
        self.path = path
        self.notes: list[str] = []
        self._files = _rank_files(path)
        self._ranks = [read_state_dict(file) for file in self._files]
        self.config = self._read_config()
        whole_rows = self._ranks[0][_EMBEDDING].shape[1:] == (self.config.hidden_size,)
        self._embedding_axis = 0 if whole_rows else 1
        self._tensors = {tensor.name: tensor for tensor in model_tensors(self.config)}
        self._check_tensors()
        self._drop_tied_head()
        self.tokenizer = self._find_tokenizer()
        self.description = f"Meta's files, model parallel {len(self._ranks)}"
        dtypes = [self._ranks[0][tensor.meta].dtype for tensor in self._tensors.values()]
        self.dtype = common_dtype(dtypes)
        self.notes += mixed_dtype_notes(dtypes)

    def names(self) -> list[str]:
        """Our names of all tensors."""
        return list(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """One tensor by our name, in our layout, in the dtype in which it is stored."""
        tensor = self._tensors[name]
        return tensor.from_torch(self._read_joined(tensor))

    def stored(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and dtype of every stored tensor of every rank."""
        return [
            (f"{file.name}/{name}", array.shape, array.dtype.name)
            for file, rank in zip(self._files, self._ranks, strict=True)
            for name, array in rank.items()
        ]

    def close(self) -> None:
        """Nothing stays open between reads."""

    def _read_joined(self, tensor: Tensor) -> np.ndarray:
        """A whole tensor in torch's layout, its rows in our order."""
        shards = [rank[tensor.meta] for rank in self._ranks]
        axis = split_axis(tensor, self._embedding_axis)
        if axis is None or len(shards) == 1:
            return _our_rows(tensor, shards[0].read(), 1)
        joined = np.empty(tensor.torch_shape, shards[0].dtype)
        for place, shard in zip(np.split(joined, len(shards), axis), shards, strict=True):
            place[...] = _our_rows(tensor, shard.read(), len(shards))
        return joined

    def _read_config(self) -> ModelConfig:
        """Sizes from `params.json`, and from the tensors what it leaves out."""
        file = self.path / "params.json"
        params = read_params(file)
        self._check_number_of_files(params)
        tied = _HEAD not in self._ranks[0]
        rows = self._rows(_EMBEDDING, params["dim"])
        width = self._rows(_GATE, params["dim"])
        _, assumed = context_length(params)
        if assumed is not None:
            self.notes.append(assumed)
        if tied:
            self.notes.append(f"there is no {_HEAD}: the model is taken as tied")
        return model_config(params, file, rows, width, tied)

    def _check_number_of_files(self, params: Json) -> None:
        width = params.get("head_dim", params["dim"] // params["n_heads"])
        rows = self._rows(_QUERY, params["dim"])
        if rows != params["n_heads"] * width:
            raise UserError(
                f"{self.path}: the {len(self._files)} consolidated.NN.pth files hold {rows} rows "
                f"of {_QUERY}, params.json asks for n_heads={params['n_heads']} x {width}; "
                "is a file missing?"
            )

    def _rows(self, name: str, columns: int) -> int:
        """Rows of a whole matrix of so many columns, whichever of the two its parts divide."""
        if name not in self._ranks[0]:
            raise UserError(f"{self._files[0]}: tensor {name} is missing")
        shape, ranks = self._ranks[0][name].shape, len(self._ranks)
        rows, rest = divmod(prod(shape) * ranks, columns)
        if len(shape) != 2 or rest:
            raise UserError(
                f"{self._files[0]}: tensor {name} has shape {shape}, which in {ranks} files does "
                f"not fit dim={columns} of params.json"
            )
        return rows

    def _check_tensors(self) -> None:
        wanted = {tensor.meta: tensor for tensor in self._tensors.values()}
        if self.config.kv_heads % len(self._ranks):
            raise UserError(
                f"{self.path}: {self.config.kv_heads} heads of keys and values cannot be divided "
                f"over {len(self._ranks)} consolidated.NN.pth files"
            )
        for file, rank in zip(self._files, self._ranks, strict=True):
            for name, tensor in wanted.items():
                if name not in rank:
                    raise UserError(f"{file}: tensor {name} is missing")
                self._check_shard(file, rank[name], tensor)
            for name in rank.keys() - wanted.keys() - {"rope.freqs"}:
                raise UserError(f"{file}: tensor {name} has no place in a Llama of ours")

    def _check_shard(self, file: Path, shard: StoredArray, tensor: Tensor) -> None:
        first = self._ranks[0][tensor.meta]
        if (shard.shape, shard.dtype) != (first.shape, first.dtype):
            raise UserError(
                f"{file}: tensor {tensor.meta} is {shard.dtype.name} {shard.shape}, but "
                f"{first.dtype.name} {first.shape} in {self._files[0].name}"
            )
        axis = split_axis(tensor, self._embedding_axis)
        expected = shard_shape(tensor, axis, len(self._ranks))
        whole = expected if axis is None else joined_shape(expected, axis, len(self._ranks))
        if shard.shape != expected or whole != tensor.torch_shape:
            raise UserError(
                f"{file}: tensor {tensor.meta} has shape {shard.shape}, params.json and "
                f"{len(self._ranks)} files ask for {expected}; is a file missing?"
            )
        if shard.dtype.name not in _DTYPES:
            raise UserError(
                f"{file}: tensor {tensor.meta} is stored as {shard.dtype.name}; "
                f"only {', '.join(_DTYPES)} can be read"
            )

    def _drop_tied_head(self) -> None:
        """Meta writes the head of a tied model too, and nowhere says that it is tied."""
        if "lm_head" not in self._tensors:
            return
        embedding = self._read_joined(self._tensors["embed_tokens"])
        head = self._read_joined(self._tensors["lm_head"])
        bits = np.dtype(f"u{embedding.itemsize}")
        if embedding.dtype != head.dtype or (embedding.view(bits) != head.view(bits)).any():
            return
        self.config = self.config.model_copy(update={"tie_word_embeddings": True})
        del self._tensors["lm_head"]
        self.notes.append(f"{_HEAD} equals {_EMBEDDING}: the model is taken as tied")

    def _find_tokenizer(self) -> Path | None:
        """The folder itself when it holds a tokenizer that can be read."""
        model = self.path / "tokenizer.model"
        if model.is_file() and _is_tiktoken(model):
            self.notes.append("tokenizer.model is a tiktoken file, which is not read")
            return None
        return self.path if any((self.path / name).is_file() for name in _TOKENIZER_FILES) else None


def is_meta_folder(path: Path) -> bool:
    """Whether `path` is a folder with a `params.json` and Meta's weights."""
    return (path / "params.json").is_file() and any(path.glob("consolidated.*.pth"))


def split_axis(tensor: Tensor, embedding_axis: int) -> int | None:
    """The dimension that ranks divide, in torch's layout; None: every rank holds the whole.

    Args:
        embedding_axis: 0 in Llama 3's files, 1 in those before.
    """
    if len(tensor.torch_shape) == 1:
        return None
    if tensor.row.name == "embed_tokens":
        return embedding_axis
    return 1 if tensor.row.name in _COLUMNS else 0


def shard_shape(tensor: Tensor, axis: int | None, ranks: int) -> tuple[int, ...]:
    """Shape of one rank's part, in torch's layout."""
    shape = list(tensor.torch_shape)
    if axis is not None:
        shape[axis] //= ranks
    return tuple(shape)


def _our_rows(tensor: Tensor, values: np.ndarray, ranks: int) -> np.ndarray:
    heads = tensor.rotated_heads
    return values if heads is None else halves_from_pairs(values, heads // ranks)


def _rank_files(path: Path) -> list[Path]:
    """`consolidated.00.pth` and the following, without a gap."""
    numbered = {
        int(match[1]): file
        for file in path.glob("consolidated.*.pth")
        if (match := re.fullmatch(r"consolidated\.(\d+)\.pth", file.name))
    }
    for number in range(max(numbered, default=0) + 1):
        if number not in numbered:
            raise UserError(f"{path / f'consolidated.{number:02}.pth'}: is missing")
    return [numbered[number] for number in sorted(numbered)]


def _is_tiktoken(file: Path) -> bool:
    """Whether it is Llama 3's kind of tokenizer: lines of a base64 text and a number."""
    with file.open("rb") as lines:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\n", lines.readline(200)) is not None
