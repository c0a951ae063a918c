"""Small runs on real or random data, shared by the tests of training."""

from pathlib import Path
from typing import Any

import numpy as np

from dongwu_jax.config import RunConfig, overlay, parse_config
from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter

BASE: dict[str, Any] = {
    "model": {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
    },
    "data": {"sequence_length": 32},
    "training": {"duration": 20, "global_batch_size": 16, "micro_batch_size": 2},
    "optimizer": {"learning_rate": 1e-2},
    "schedule": {"warmup": 3, "min_learning_rate": 1e-3},
    "precision": {"compute_dtype": "float32"},
    "checkpoint": {"interval": 10},
    "logging": {"tensorboard": False},
}


def write_text_dataset(prefix: Path) -> Path:
    """The Apache licence as byte tokens, one document a paragraph: real text, small vocabulary."""
    text = (Path(__file__).resolve().parents[1] / "LICENSE").read_text("ascii")
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        for paragraph in text.split("\n\n"):
            tokens = np.frombuffer(paragraph.encode(), np.uint8).astype(np.uint16)
            writer.add_document(np.append(tokens, 2).astype(np.uint16), [len(tokens) + 1])
    return prefix


def run_config(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    """BASE with `sections` on top, reading and writing inside `folder`."""
    prefix = folder / "text"
    if not prefix.with_suffix(".idx").exists():
        write_text_dataset(prefix)
    placed = {
        "data": {"blend": str(prefix), "index_cache": str(folder / "cache")},
        "checkpoint": {"directory": str(folder / "run" / "checkpoints")},
    }
    return parse_config(overlay(overlay(BASE, placed), sections), source="test")
