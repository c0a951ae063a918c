"""What `multigpu.py` times: models over all GPUs of a host, as deep as their memory holds."""

from dataclasses import dataclass
from typing import Any

from train_cases import SLICES

from dongwu_jax.config import RunConfig, overlay, parse_config

# Layers that fit on so many GPUs of 80 GB.
_LAYERS: dict[str, dict[int, int]] = {
    "7b": {8: 32, 4: 32, 2: 16},
    "13b": {8: 40, 4: 28, 2: 16},
    "31b": {8: 44, 4: 22, 2: 11},
}
_WIDTHS = SLICES | {"31b": {"hidden_size": 6656, "intermediate_size": 17920, "num_heads": 52}}
# What virtual CPU devices can run.
_REHEARSED_SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 8, "num_layers": 16}
_REHEARSED_LENGTH = 64


@dataclass(frozen=True)
class Case:
    """A training step to time.

    Args:
        model: a key of `_LAYERS`.
        settings: layout and training settings of our run.
        sequences: of a step, a GPU.
        layers: instead of as many as fit.
        one_gpu: the run is on one GPU instead of all.
        peer_rows: sequences in a micro batch of PyTorch's step; None: it does not run.
    """

    model: str
    settings: dict[str, Any]
    sequence_length: int = 4096
    sequences: int = 8
    layers: int | None = None
    one_gpu: bool = False
    peer_rows: int | None = None
    peer_checkpointing: bool = True

    def shape(self, gpus: int) -> dict[str, int]:
        """Sizes of the model."""
        layers = self.layers or _LAYERS[self.model][gpus]
        return _WIDTHS[self.model] | {"num_layers": layers, "vocab_size": 32000}

    def config(self, gpus: int, rehearsal: bool = False) -> RunConfig:
        """Our run.

        Args:
            gpus: of the host.
            rehearsal: the same layout of a tiny model.
        """
        shape, length, settings = self.shape(gpus), self.sequence_length, self.settings
        if rehearsal:
            shape, length = shape | _REHEARSED_SIZE, _REHEARSED_LENGTH
            settings = overlay(settings, {"training": {"loss_chunk_tokens": 0}})
        sections = {
            "model": shape | {"max_position_embeddings": length},
            "data": {"sequence_length": length},
            "training": {
                "global_batch_size": self.sequences * (1 if self.one_gpu else gpus),
                "duration": 1000,
            },
        }
        return parse_config(overlay(sections, settings), f"case {self}")

    def peer(self, gpus: int) -> dict[str, int] | None:
        """What the PyTorch step is told."""
        if self.peer_rows is None:
            return None
        return self.shape(gpus) | {
            "sequence_length": self.sequence_length,
            "rows": self.peer_rows,
            "accumulation_steps": self.sequences // self.peer_rows,
            "checkpointing": int(self.peer_checkpointing),
        }


def cases(gpus: int) -> dict[str, Case]:
    """All cases on so many GPUs, by name."""
    return _weak_scaling(gpus) | _whole_models(gpus) | _long_sequences(gpus)


def _weak_scaling(gpus: int) -> dict[str, Case]:
    """Four layers of 13B with the same tokens a GPU, on one GPU and on all."""
    settings = {"training": {"micro_batch_size": 4, "remat": "minimal"}}
    split = overlay(settings, {"mesh": {"fsdp": gpus}})
    return {
        "weak_1": Case("13b", settings, layers=4, one_gpu=True),
        f"weak_{gpus}": Case("13b", split, layers=4, peer_rows=4, peer_checkpointing=False),
    }


def _whole_models(gpus: int) -> dict[str, Case]:
    half = gpus // 2
    pipe = {"pipe": half, "fsdp": 2} if half > 1 else {"pipe": gpus}

    def settings(rows: int, mesh: dict[str, int], **training: Any) -> dict[str, Any]:
        return {
            "mesh": mesh,
            "training": {"micro_batch_size": rows, "remat": "attention"} | training,
        }

    layouts = {
        "fsdp": settings(4, {"fsdp": gpus}),
        "fsdp_minimal": settings(2, {"fsdp": gpus}, remat="minimal"),
        "tensor": settings(2 * gpus, {"tensor": gpus}),
        "tensor_fsdp": settings(2 * half, {"tensor": half, "fsdp": 2}),
        "fsdp_tensor_minimal": settings(4, {"fsdp": half, "tensor": 2}, remat="minimal"),
        "pipe": settings(1, pipe),
        "pipe_virtual": settings(1, pipe, virtual_stages=2),
    }
    peers: dict[str, dict[str, Any]] = {
        "fsdp": {"peer_rows": 4},
        "fsdp_minimal": {"peer_rows": 1, "peer_checkpointing": False},
    }
    found = {
        f"{model}_{name}": Case(model, changes, **peers.get(name, {}))
        for model in ("7b", "13b")
        for name, changes in layouts.items()
    }
    found["31b_fsdp"] = Case("31b", settings(2, {"fsdp": gpus}), sequences=4)
    return found


def _long_sequences(gpus: int) -> dict[str, Case]:
    training = {"micro_batch_size": 1, "remat": "attention", "loss_chunk_tokens": 4096}
    meshes = {
        "fsdp": {"mesh": {"fsdp": gpus}},
        "context": {"mesh": {"context": gpus}},
        "tensor": {"mesh": {"tensor": gpus}},
    }
    return {
        f"13b_32k_{name}": Case(
            "13b",
            mesh | {"training": training},
            sequence_length=32768,
            sequences=1,
            peer_rows=1 if name == "fsdp" else None,
        )
        for name, mesh in meshes.items()
    }
