"""Seeds of what jobs keep: caches, the state of a preprocessing, parts of a synthesis."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from seed_material import SENTENCES, write_jsonl

from dongwu_jax.data.index_cache import IndexCache
from dongwu_jax.data.indexed_dataset_writer import WriterPosition
from dongwu_jax.data.preprocess_state import PreprocessState, save_state
from dongwu_jax.data.teacher_cache import IDS, LOG_PROBABILITIES, CacheHeader, CacheWriter
from dongwu_jax.distill.synthesis.manifest import describe, open_folder
from dongwu_jax.distill.synthesis.parts import PartFolder
from dongwu_jax.distill.synthesis.recipe import Recipe, Sampling

RECIPE = Recipe(
    text_key="text",
    template="continue",
    language="auto",
    prefix_tokens=(4, 8),
    min_document_tokens=4,
    rounds=1,
    seed=0,
    limit=None,
    documents_per_part=2,
    sampling=Sampling(16, 1.0, 0.95, 1.0),
)
IDENTITY = {"settings": {"json_keys": ["text"]}, "inputs": [["a.jsonl", 10, 3]]}
CACHE_KEY = {"kind": "fuzz", "seed": 3}


def cached_arrays() -> dict[str, np.ndarray]:
    """What the sample index of the seed holds."""
    return {"a": np.arange(7, dtype=np.int64), "b": np.ones((2, 3), np.int32)}


def write_caches(root: Path) -> None:
    """A teacher cache, an index cache, and the state of a preprocessing that was stopped."""
    folder = root / "teacher_cache"
    data = {"order": "epoch", "seed": 0, "blend": []}
    header = CacheHeader("teacher", "0f" * 16, "float32", 50, 3, 4, 5, 2, data)
    writer = CacheWriter(folder, header)
    logits = np.random.default_rng(0).normal(size=(5, 4, 50))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = np.argsort(-probabilities)[..., :3]
    top = np.take_along_axis(probabilities, ids, -1)
    with_tail = np.log(np.concatenate([top, 1 - top.sum(-1, keepdims=True)], -1))
    for part in range(header.parts):
        rows = header.samples_of(part)
        chosen = slice(rows.start, rows.stop)
        writer.write(part, {IDS: ids[chosen], LOG_PROBABILITIES: with_tail[chosen]})
    writer.finish()
    IndexCache(root / "index_cache").load_or_build(CACHE_KEY, cached_arrays)
    (root / "preprocess_state").mkdir()
    state = PreprocessState(0, 120, 4, 1, [WriterPosition(3, 3, 40)])
    save_state(root / "preprocess_state" / "x.state.partial", IDENTITY, state)


def write_synthesis(root: Path) -> None:
    """The output folder of a synthesis, one of its parts begun."""
    folder = root / "synthesis"
    output = folder / "output"
    output.mkdir(parents=True)
    documents = folder / "documents.jsonl"
    write_jsonl(documents, [{"text": text} for text in SENTENCES])
    tokenizer = root / "tokenizer" / "tokenizer.json"
    shutil.copy(tokenizer, folder / "tokenizer.json")
    open_folder(output, describe(RECIPE, "model", folder / "tokenizer.json", [documents]))
    parts = PartFolder(output)
    for part in parts.planned([documents], RECIPE.documents_per_part, None):
        parts.write(part.number, [_sample(n) for n in range(part.documents)], [_rejected()])
    (output / ".part-00001.begun").write_bytes(json.dumps(_sample(9)).encode() + b'\n{"id": "x')


def _sample(number: int) -> dict[str, Any]:
    return {
        "id": f"{number:032x}",
        "text": "The bank sells bonds.",
        "prefix": "The bank",
        "completion": " sells bonds.",
        "source": f"documents.jsonl:{number + 1}",
        "round": 0,
        "prefix_tokens": 2,
        "completion_tokens": 4,
        "finish_reason": "length",
        "template": "continue",
        "model": "model",
        "sampling": asdict(RECIPE.sampling),
        "seed": 7,
    }


def _rejected() -> dict[str, Any]:
    return {"source": "documents.jsonl:1", "kind": "short", "reason": "has 1 token"}
