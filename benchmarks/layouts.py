"""Train a small model in every layout of 8 devices and on one: equal losses, equal gradients.

Example:
    python benchmarks/layouts.py [--only context4_pipe2]

Float32, 20 steps on real text, on virtual CPU devices. Prints a JSON line for each layout with the
largest relative difference from one device of the loss over all steps, and of any weight's first
gradient (of its largest element). Exits with 1 if one is not at most 1e-4.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np

from dongwu_jax.config import RunConfig, overlay, parse_config
from dongwu_jax.models.parameters import named_parameters
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.training.batches import BatchLayout
from dongwu_jax.training.state import StartingPoint, initial_state
from dongwu_jax.training.step import make_objective, make_train_step

STEPS, BATCH, LENGTH = 20, 16, 32
LIMIT = 1e-4
SETTINGS: dict[str, dict[str, Any]] = {
    "model": {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_layers": 4,
        "num_heads": 8,
        "max_position_embeddings": LENGTH,
        "initializer_range": 0.1,
    },
    "data": {"sequence_length": LENGTH},
    "training": {"duration": STEPS, "global_batch_size": BATCH, "micro_batch_size": 1},
    # Without clipping, Adam's first moment after one step is the gradient times 1 - beta1.
    "optimizer": {"learning_rate": 5e-3, "clip_norm": None},
    "schedule": {"type": "constant"},
    "precision": {"compute_dtype": "float32"},
}

GQA = {"num_kv_heads": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "data8": {"mesh": {"data": 8}},
    "fsdp8": {"mesh": {"fsdp": 8}},
    "tensor8": {"mesh": {"tensor": 8}},
    "context8": {"mesh": {"context": 8}},
    "pipe4_data2": {"mesh": {"pipe": 4, "data": 2}},
    "data2_fsdp4": {"mesh": {"data": 2, "fsdp": 4}},
    "zero1_data8": {"mesh": {"data": 8}, "sharding": {"rules": {"embed": ["data"]}}},
    "data2_tensor4": {"mesh": {"data": 2, "tensor": 4}},
    "fsdp2_tensor4": {"mesh": {"fsdp": 2, "tensor": 4}},
    "data2_context4": {"mesh": {"data": 2, "context": 4}},
    "fsdp4_context2": {"mesh": {"fsdp": 4, "context": 2}},
    "context4_tensor2": {"mesh": {"context": 4, "tensor": 2}},
    "context4_pipe2": {"mesh": {"context": 4, "pipe": 2}},
    "pipe2_fsdp4": {"mesh": {"pipe": 2, "fsdp": 4}},
    "pipe2_tensor4": {"mesh": {"pipe": 2, "tensor": 4}},
    "data2_fsdp2_tensor2": {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}},
    "fsdp2_context2_tensor2": {"mesh": {"fsdp": 2, "context": 2, "tensor": 2}},
    "pipe2_tensor2_fsdp2": {"mesh": {"pipe": 2, "tensor": 2, "fsdp": 2}},
    "pipe2_virtual2_data4_accumulate4": {
        "mesh": {"pipe": 2, "data": 4},
        "training": {"virtual_stages": 2, "remat": "attention"},
    },
    "pipe2_virtual2_rounds_zero1": {
        "mesh": {"pipe": 2, "data": 2, "fsdp": 2},
        "training": {"virtual_stages": 2, "pipeline_micro_batches": 2, "remat": "full"},
        "sharding": {"rules": {"embed": ["fsdp", "data", "pipe"]}},
    },
    "fsdp4_accumulate4_remat": {
        "mesh": {"fsdp": 4, "data": 1},
        "training": {"remat": "minimal", "scan_layers": True},
    },
    "ring_context8": {"mesh": {"context": 8}, "model": GQA},
    "ring_context4_tensor2": {"mesh": {"context": 4, "tensor": 2}, "model": GQA},
    "ring_context2_pipe2_fsdp2": {
        "mesh": {"context": 2, "pipe": 2, "fsdp": 2},
        "model": GQA,
        "sharding": {"context_attention": "ring"},
    },
    "gqa_context2_tied_bias": {
        "mesh": {"context": 2, "data": 2, "pipe": 2},
        "model": {**GQA, "tie_word_embeddings": True, "qkv_bias": True},
    },
    "tensor2_heads_whole_norm_fsdp": {
        "mesh": {"fsdp": 4, "tensor": 2},
        "sharding": {"rules": {"heads": None, "kv_heads": None, "norm": ["fsdp"]}},
    },
    "vocabulary_split_fsdp2_pipe2_data2": {
        "mesh": {"fsdp": 2, "pipe": 2, "data": 2},
        "sharding": {"rules": {"vocab": ["fsdp"], "embed": None}},
    },
    "gqa_tensor4_kv_repeated": {
        "mesh": {"data": 2, "tensor": 4},
        "model": GQA,
        "sharding": {"rules": {"kv_heads": None}},
    },
}


@dataclass(frozen=True)
class Curve:
    """What is compared of a run."""

    losses: np.ndarray
    gradients: dict[str, np.ndarray]  # of the first step


@dataclass(frozen=True)
class Difference:
    """Largest relative differences of a layout from one device."""

    loss: float
    gradient: float
    weight: str  # whose gradient differs most

    @property
    def small(self) -> bool:
        """Whether the runs are equal; what is no number is not."""
        return self.loss <= LIMIT and self.gradient <= LIMIT


def settings_of(name: str) -> RunConfig:
    """A layout's run."""
    return parse_config(overlay(SETTINGS, LAYOUTS[name]), f"layout {name}")


def train(config: RunConfig, devices: int) -> Curve:
    """The first `STEPS` steps on so many devices."""
    sharding = make_sharding(config, jax.devices()[:devices])
    layout = BatchLayout(config, sharding)
    step = make_train_step(
        config, sharding, make_objective(config, sharding, jax.default_backend())
    )
    state = initial_state(config, sharding, StartingPoint())
    losses, gradients = [], {}
    for batch in _batches(layout.shape):
        state, metrics = step(state, layout.place(batch))
        losses.append(float(metrics["loss"]))
        if not gradients:
            moments = named_parameters(jax.device_get(state.optimizer_state[0].mu))
            scale = 1 / (1 - config.optimizer.beta1)
            gradients = {name: moment * scale for name, moment in moments.items()}
    return Curve(np.array(losses), gradients)


def on_one_device(config: RunConfig) -> Curve:
    """The same run without any layout, all rows at once."""
    whole = config.model_dump(mode="json")
    whole |= {"mesh": {}, "sharding": {}}
    plain = {"virtual_stages": 1, "pipeline_micro_batches": None, "remat": "none"}
    whole["training"] |= {"micro_batch_size": BATCH, "scan_layers": False, **plain}
    return train(parse_config(whole, "one device"), 1)


def difference(found: Curve, expected: Curve) -> Difference:
    """How far two runs are apart."""
    by_weight = {
        name: float(np.abs(found.gradients[name] - value).max() / np.abs(value).max())
        for name, value in expected.gradients.items()
    }
    worst = max(by_weight, key=lambda name: np.nan_to_num(by_weight[name], nan=np.inf))
    loss = float(np.abs(found.losses / expected.losses - 1).max())
    return Difference(loss, by_weight[worst], worst)


def device_count(config: RunConfig) -> int:
    """Devices of a layout: the product of its axes."""
    return int(np.prod([size for size in config.mesh.model_dump().values() if size > 0]))


def _batches(shape: tuple[int, int, int]) -> Iterator[dict[str, np.ndarray]]:
    """Real text as bytes: the licence, in windows that follow one another."""
    text = (Path(__file__).resolve().parents[1] / "LICENSE").read_bytes()
    tokens = np.frombuffer(text, np.uint8).astype(np.int32)
    windows = np.stack([tokens[i : i + LENGTH + 1] for i in range(0, len(tokens) - LENGTH, LENGTH)])
    for step in range(STEPS):
        rows = windows[np.arange(step * BATCH, (step + 1) * BATCH) % len(windows)]
        inputs, labels = (
            np.ascontiguousarray(x).reshape(shape) for x in (rows[:, :-1], rows[:, 1:])
        )
        # As with `eod_mask_loss`: not every token counts, so that sums and means differ.
        yield {"tokens": inputs, "labels": labels, "loss_mask": (inputs != 32).astype(np.float32)}


def main(command_line: list[str] | None = None) -> int:
    """Compare all layouts, or one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=LAYOUTS, help="one layout")
    options = parser.parse_args(command_line)
    references: dict[str, Curve] = {}
    failed = False
    for name in [options.only] if options.only else LAYOUTS:
        config = settings_of(name)
        model = config.model.model_dump_json()
        if model not in references:
            references[model] = on_one_device(config)
        found = difference(train(config, device_count(config)), references[model])
        print(json.dumps({"layout": name, **vars(found)}), flush=True)
        failed |= not found.small
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
