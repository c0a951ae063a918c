"""Writing down what a teacher says of all samples of a run, so that many students can read it."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dongwu_jax.config import RunConfig
from dongwu_jax.data.datasets import build_dataset
from dongwu_jax.data.fingerprint import fingerprint, folder_hash
from dongwu_jax.data.gpt_dataset import SampleSource
from dongwu_jax.data.teacher_cache import IDS, LOG_PROBABILITIES, CacheHeader, CacheWriter, Entries
from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.on_devices import OnDevices, rows_for
from dongwu_jax.evaluate.scoring import hidden_states
from dongwu_jax.interop.loaded_model import default_dtype, load_model
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.teacher import check_teacher
from dongwu_jax.models.llama import Llama
from dongwu_jax.parallel.context import Attend
from dongwu_jax.progress_bars import token_bar

_HEAD_TOKENS = 512  # of each sequence, whose logits exist at once
_SMALLEST_TAIL = 1e-7


@dataclass(frozen=True)
class Caching:
    """What a command line asks for.

    Attributes:
        config: of the run that will read the cache, with a complete model section.
        fsdp: devices that share one copy of the teacher.
    """

    config: RunConfig
    teacher: Path
    folder: Path
    top_k: int
    samples_per_part: int
    dtype: str | None
    fsdp: int


def write_cache(job: Caching) -> None:
    """Write the cache of all training samples of a run, or what is missing of it.

    Raises:
        UserError: the teacher, the data or the folder cannot be used.
    """
    config = job.config
    samples = config.steps * config.training.global_batch_size
    if not 0 < job.top_k < config.model.vocab_size:
        raise UserError(
            f"--top-k {job.top_k}: the vocabulary has {config.model.vocab_size} tokens; 16 to 64 "
            "hold nearly all of the probability"
        )
    if config.data.format != "text":
        raise UserError(
            f"data.format={config.data.format}: a cache is of samples of text; set "
            "distillation.teacher instead"
        )
    source = open_source(job.teacher)
    check_teacher(source, job.teacher, config)
    source.close()
    dtype = job.dtype or default_dtype()
    header = CacheHeader(
        str(job.teacher),
        folder_hash(job.teacher),
        dtype,
        config.model.vocab_size,
        job.top_k,
        config.data.sequence_length,
        samples,
        job.samples_per_part,
        fingerprint(config.data, samples),
    )
    dataset = build_dataset(config.data, "train", samples, config.model.vocab_size)
    writer = CacheWriter(job.folder, header)
    missing = writer.missing()
    if missing:
        _write_parts(job, writer, dataset, missing)
    writer.finish()
    print(f"wrote {job.folder}: {samples:,} samples of {header.sequence_length} tokens")


def _write_parts(
    job: Caching, writer: CacheWriter, dataset: SampleSource, missing: list[int]
) -> None:
    header, devices = writer.header, jax.local_devices()
    model = load_model(job.teacher, header.dtype, job.config.data.tokenizer, devices, job.fsdp)
    program = OnDevices(model, functools.partial(_likeliest, job.top_k))
    rows = rows_for(header.samples_per_part, header.sequence_length, len(devices))
    tokens = sum(len(header.samples_of(part)) for part in missing) * header.sequence_length
    with token_bar("teacher", tokens) as advance:
        for part in missing:
            found: list[Entries] = []
            for batch, real in _batches(dataset, header.samples_of(part), rows):
                ids, log_probabilities = program(batch, np.zeros(len(batch), np.int32))
                found.append({IDS: ids[:real], LOG_PROBABILITIES: log_probabilities[:real]})
                advance(real * header.sequence_length)
            writer.write(
                part, {name: np.concatenate([f[name] for f in found]) for name in found[0]}
            )


def _batches(dataset: SampleSource, samples: range, rows: int) -> Iterator[tuple[np.ndarray, int]]:
    """int32 [rows, length] inputs, the last filled up; and how many of the rows are samples."""
    for first in range(samples.start, samples.stop, rows):
        numbers = range(first, min(first + rows, samples.stop))
        inputs = np.stack([_inputs(dataset[number]) for number in numbers])
        padding = rows - len(numbers)
        yield np.pad(inputs, ((0, padding), (0, 0))), len(numbers)


def _inputs(sample: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
    assert isinstance(sample, np.ndarray)  # data.format=text
    return sample[:-1]


def _likeliest(
    top_k: int, model: Llama, tokens: jax.Array, _: jax.Array, attend: Attend
) -> tuple[jax.Array, jax.Array]:
    """int32 [batch, length, k] and float32 [batch, length, k + 1], the tail last."""
    hidden = hidden_states(model, tokens, attend)
    head = model.head()[:, : model.config.vocab_size]

    def part(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=jnp.float32)
        top, ids = jax.lax.top_k(jax.nn.log_softmax(logits), top_k)
        tail = jnp.maximum(1 - jnp.sum(jnp.exp(top), axis=-1, keepdims=True), _SMALLEST_TAIL)
        return ids, jnp.concatenate([top, jnp.log(tail)], axis=-1)

    length = tokens.shape[1]
    chunk = min(_HEAD_TOKENS, length)
    padded = jnp.pad(hidden, ((0, 0), (0, -length % chunk), (0, 0)))
    parts = padded.reshape(len(hidden), -1, chunk, hidden.shape[-1]).swapaxes(0, 1)
    joined = (x.swapaxes(0, 1) for x in jax.lax.map(part, parts))
    ids, top = (x.reshape(len(hidden), -1, x.shape[-1])[:, :length] for x in joined)
    return ids, top
