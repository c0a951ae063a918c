"""Writing adapters as the PEFT library and vLLM load them: two small files beside the base model.

adapter_model.safetensors holds `base_model.model.<name of the Linear>.lora_A.weight` [rank, in]
and `.lora_B.weight` [out, rank], adapter_config.json what else is to be known.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.lora import LoraConfig
from dongwu_jax.interop.safetensors_files import SafetensorsWriter
from dongwu_jax.interop.targets import DTYPES, PlannedFile, Progress, ReadTensor, cast
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.models.lora import target_names

_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class PeftTarget:
    """A folder with the adapters of a run."""

    config: ModelConfig
    lora: LoraConfig
    adapters: Mapping[str, np.ndarray]  # by our names, e.g. `layers.0.mlp.up_proj.down`
    base: Path  # the model that they were trained on, for whoever loads them
    dtype: str = "float32"

    def files(self) -> list[PlannedFile]:
        """The one weight file."""
        tensors: list[tuple[str, tuple[int, ...]]] = [
            (name, shape) for name, shape, _ in self._tensors()
        ]
        return [PlannedFile(_WEIGHTS, tensors)]

    def write(self, folder: Path, read: ReadTensor, progress: Progress) -> None:
        """Write weights and settings into an existing empty folder; `read` is not needed.

        Raises:
            UserError: a value does not fit the dtype.
        """
        planned = self.files()[0]
        with (folder / _WEIGHTS).open("wb") as file:
            writer = SafetensorsWriter(file, planned.tensors, self.dtype)
            for name, shape, ours in self._tensors():
                values = self.adapters[ours]
                rows = (-1, shape[0]) if ours.endswith(".down") else (shape[1], -1)
                matrix = np.ascontiguousarray(values.reshape(rows).T)
                writer.write(cast(matrix, self.dtype, name))
                progress(matrix.size * DTYPES[self.dtype].itemsize)
            writer.close()
        text = json.dumps(self._settings(), indent=2)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")

    def _tensors(self) -> Iterator[tuple[str, tuple[int, int], str]]:
        """Name and shape in the file, and our name."""
        targets, rank = set(target_names(self.config, self.lora)), self.lora.rank
        assert rank is not None
        for tensor in model_tensors(self.config):
            if tensor.name not in targets:
                continue
            outputs, inputs = tensor.torch_shape
            linear = f"base_model.model.{tensor.hugging_face.removesuffix('.weight')}"
            yield f"{linear}.lora_A.weight", (rank, inputs), f"{tensor.name}.down"
            yield f"{linear}.lora_B.weight", (outputs, rank), f"{tensor.name}.up"

    def _settings(self) -> dict[str, object]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(self.base),
            "r": self.lora.rank,
            "lora_alpha": self.lora.alpha,
            "lora_dropout": 0.0,
            "target_modules": list(self.lora.targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
