"""Writing Meta's own files: `params.json` and `consolidated.NN.pth`, one a model-parallel rank."""

import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.data.tokenizers import tokenizer_files
from dongwu_jax.errors import UserError
from dongwu_jax.interop.meta import MetaSource, shard_shape, split_axis
from dongwu_jax.interop.meta_params import write_params
from dongwu_jax.interop.targets import DTYPES, PlannedFile, Progress, ReadTensor, cast
from dongwu_jax.interop.tensors import Tensor, model_tensors, pairs_from_halves
from dongwu_jax.interop.torch_files.writer import PendingTensor, TorchFileWriter

# What params.json and the tensors do not tell a reader.
_NOT_EXPRESSED = (
    "max_position_embeddings",
    "initializer_range",
    "tie_word_embeddings",
    "padded_vocab_size",
    "padded_vocab_in_softmax",
)


@dataclass
class MetaTarget:
    """Meta's files to write; padding rows of the vocabulary are left out.

    Columns of the embedding are divided, as Llama 2's code expects, which is also the code that
    reads a SentencePiece tokenizer.
    """

    config: ModelConfig
    dtype: str  # of the stored weights, a key of `DTYPES`
    model_parallel: int = 1  # files
    tokenizer: Path | None = None  # None: the folder gets none

    def files(self) -> list[PlannedFile]:
        """The weight files, from sizes alone.

        Raises:
            UserError: the model cannot be expressed, or not divided so.
        """
        write_params(self.config)
        self._check_divisible()
        shapes = [(tensor.meta, self._shard_shape(tensor)) for tensor in self._tensors()]
        names = [f"consolidated.{rank:02}.pth" for rank in range(self.model_parallel)]
        return [PlannedFile(name, shapes) for name in names]

    def write(self, folder: Path, read: ReadTensor, progress: Progress) -> None:
        """Write settings, tokenizer and weights into an existing empty folder, then check them.

        Raises:
            UserError: as `files`; or a value does not fit the dtype.
        """
        planned = self.files()
        params = json.dumps(write_params(self.config), indent=2)
        (folder / "params.json").write_text(params + "\n", encoding="utf-8")
        if self.tokenizer is not None:
            _copy_tokenizer(self.tokenizer, folder)
        self._write_weights(folder, planned, read, progress)
        _check(folder, self.config)

    def _write_weights(
        self, folder: Path, planned: list[PlannedFile], read: ReadTensor, progress: Progress
    ) -> None:
        """Write all files side by side, each tensor read once."""
        with ExitStack() as opened:
            files = [opened.enter_context((folder / plan.path).open("wb")) for plan in planned]
            dtype = DTYPES[self.dtype]
            tree = {name: PendingTensor(shape, dtype) for name, shape in planned[0].tensors}
            writers = [TorchFileWriter(file, tree) for file in files]
            for tensor in self._tensors():
                values = self._values(tensor, read)
                axis = self._split_axis(tensor)
                parts = [values] * len(writers)
                if axis is not None:
                    parts = np.split(values, len(writers), axis)
                for writer, part in zip(writers, parts, strict=True):
                    writer.write(np.ascontiguousarray(part))
                progress(values.nbytes)
            for writer in writers:
                writer.close()

    def _tensors(self) -> list[Tensor]:
        """All, the head too when it is tied: Meta's code always reads one."""
        changes = {"padded_vocab_size": None, "tie_word_embeddings": False}
        return model_tensors(self.config.model_copy(update=changes))

    def _values(self, tensor: Tensor, read: ReadTensor) -> np.ndarray:
        """A whole tensor as Meta stores it."""
        kept = tuple(slice(size) for size in tensor.shape)
        if tensor.name == "lm_head" and self.config.tie_word_embeddings:
            values = read("embed_tokens")[: tensor.sizes["vocab"]]
        else:
            values = tensor.to_torch(read(tensor.name)[kept])
        values = cast(values, self.dtype, tensor.meta)
        heads = tensor.rotated_heads
        return values if heads is None else pairs_from_halves(values, heads)

    def _split_axis(self, tensor: Tensor) -> int | None:
        return split_axis(tensor, embedding_axis=1)

    def _shard_shape(self, tensor: Tensor) -> tuple[int, ...]:
        return shard_shape(tensor, self._split_axis(tensor), self.model_parallel)

    def _check_divisible(self) -> None:
        config, ranks = self.config, self.model_parallel
        for name, size in (
            ("num_heads", config.num_heads),
            ("num_kv_heads", config.kv_heads),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("vocab_size", config.vocab_size),
        ):
            if size % ranks:
                raise UserError(
                    f"{name}={size} is not divisible by tensor parallel size {ranks}, and Meta's "
                    "format has no padding; choose a size that divides it"
                )


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy its files; the only SentencePiece model gets the name that Meta's code looks for."""
    files = tokenizer_files(source)
    models = [file for file in files if file.suffix == ".model"]
    for file in files:
        shutil.copyfile(file, folder / ("tokenizer.model" if [file] == models else file.name))


def _check(folder: Path, config: ModelConfig) -> None:
    """Read the export back: every name and shape, and the settings.

    Raises:
        RuntimeError: it is read as another model.
    """
    written = MetaSource(folder)
    written.close()
    expressed = set(ModelConfig.model_fields) - set(_NOT_EXPRESSED)
    resolved = {"num_kv_heads": config.kv_heads, "head_dim": config.width_per_head}
    ours = config.model_copy(update=resolved).model_dump(include=expressed)
    found = written.config
    resolved = {"num_kv_heads": found.kv_heads, "head_dim": found.width_per_head}
    if found.model_copy(update=resolved).model_dump(include=expressed) != ours:
        raise RuntimeError(f"{folder}: params.json is read as another model: {found}")
