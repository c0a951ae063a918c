"""What the order of the training data depends on, to be kept in checkpoints and compared."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dongwu_jax.config.sections import DataConfig
from dongwu_jax.data.blending import blend_weights
from dongwu_jax.data.chat_samples import marks_prefix
from dongwu_jax.data.indexed_dataset import IndexedDataset, bin_path, idx_path
from dongwu_jax.errors import UserError

Fingerprint = dict[str, Any]

_BLOCK_BYTES = 4096
_BLOCKS = 64  # of each file, evenly spaced


def content_hash(prefix: Path) -> str:
    """A cheap fingerprint of a dataset: sizes, and evenly spaced blocks of both files.

    Files up to 256 KiB are covered whole. Larger ones are not: a change of a few tokens that
    keeps the size can go unnoticed.

    Raises:
        UserError: a file cannot be read.
    """
    return hash_of_files([idx_path(prefix), bin_path(prefix)])


def folder_hash(path: Path) -> str:
    """The same of all files below a folder, or of one file; names count.

    Raises:
        UserError: a file cannot be read.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    names = "\n".join(str(file.relative_to(path)) for file in files)
    return hashlib.sha256((names + hash_of_files(files)).encode()).hexdigest()[:32]


def hash_of_files(paths: Sequence[Path]) -> str:
    """The same of some files, by their content alone."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(size.to_bytes(8, "little"))
                for offset in _block_offsets(size):
                    file.seek(offset)
                    digest.update(file.read(_BLOCK_BYTES))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:32]


def _block_offsets(size: int) -> list[int]:
    if size <= _BLOCKS * _BLOCK_BYTES:
        return list(range(0, size, _BLOCK_BYTES))
    return [(size - _BLOCK_BYTES) * block // (_BLOCKS - 1) for block in range(_BLOCKS)]


def fingerprint(config: DataConfig, train_samples: int) -> Fingerprint:
    """Describe what decides the training samples and their order; JSON-able and small.

    Args:
        config: the data section of the run.
        train_samples: length of the run. Kept for `order: megatron` only: the epoch order does
            not depend on it.

    Raises:
        UserError: a dataset is missing or damaged.
    """
    weights = blend_weights(config.blend, config.order)
    chat = config.format == "chat"
    shares = [None] * len(config.blend) if weights is None else weights.tolist()
    return {
        # Before there was a choice, nothing was written.
        **({"format": "chat", "too_long": config.too_long} if chat else {}),
        "order": config.order,
        "sequence_length": config.sequence_length,
        "seed": config.seed,
        "split": config.split if config.validation_blend is None else "whole",
        "train_samples": train_samples if config.order == "megatron" else None,
        "blend": [
            _describe(IndexedDataset(entry.prefix), share, chat)
            for entry, share in zip(config.blend, shares, strict=True)
        ],
    }


def _describe(dataset: IndexedDataset, share: float | None, chat: bool) -> dict[str, Any]:
    content = content_hash(dataset.prefix)
    if chat:
        content += content_hash(marks_prefix(dataset.prefix))
    return {
        "name": dataset.prefix.name,
        "weight": share,
        "sequences": len(dataset),
        "tokens": dataset.num_tokens,
        "content": content,
    }


def compare_fingerprints(saved: Fingerprint, current: Fingerprint) -> list[str]:
    """What differs, one readable sentence each; empty when the data order is the same."""
    differences = [
        f"data.{name} was {saved.get(name)!r} and is {current.get(name)!r}"
        for name in ("format", "too_long", "order", "sequence_length", "seed", "split")
        if saved.get(name) != current.get(name)
    ]
    before, now = saved.get("train_samples"), current.get("train_samples")
    if before != now and saved.get("order") == current.get("order"):
        differences.append(
            f"the run was planned for {before} training samples and is for {now}; "
            "order megatron depends on it"
        )
    return differences + _compare_blends(saved.get("blend", []), current.get("blend", []))


def _compare_blends(saved: list[dict[str, Any]], current: list[dict[str, Any]]) -> list[str]:
    names_before = [entry["name"] for entry in saved]
    names_now = [entry["name"] for entry in current]
    if names_before != names_now:
        return [f"data.blend was [{', '.join(names_before)}] and is [{', '.join(names_now)}]"]
    differences = []
    for before, now in zip(saved, current, strict=True):
        changed = [
            f"{field} was {before[field]} and is {now[field]}"
            for field in ("weight", "sequences", "tokens", "content")
            if before[field] != now[field]
        ]
        if changed:
            differences.append(f"data.blend, {now['name']}: {'; '.join(changed)}")
    return differences
