"""Time and memory of pruning a model that is bigger than memory, tensor by tensor.

Example:
    python benchmarks/prune.py --methods random magnitude

A random bfloat16 Llama in the shape of a 13B that exists only while it is read, cut to the shape of
a 7B; what is written is laid out as Hugging Face stores it, counted and thrown away. Each method is
a process of its own and prints one line of JSON. `seconds` are all but the start of the process,
`making_seconds` those that went into random numbers, which a real model's files would not need.
"""

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.compress.choosing import choose, norm_scales, random_scores
from dongwu_jax.compress.magnitude import magnitude_scores
from dongwu_jax.compress.pruned_source import PrunedSource
from dongwu_jax.compress.shapes import Shape
from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.freed_memory import keep_freed_memory
from dongwu_jax.interop.model_source import StoredName
from dongwu_jax.interop.tensors import model_tensors

METHODS = ("random", "magnitude")


def main(arguments: list[str] | None = None) -> None:
    """Measure every method and print one line of JSON for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    add("--layers", type=positive_int, default=40, help="of the model; four fifths are kept (40)")
    options = parser.parse_args(arguments)
    for method in options.methods:
        # In a process of its own: its peak of memory is that of this case alone.
        process = multiprocessing.get_context("spawn").Process(
            target=_measure, args=(method, options.layers)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise UserError(f"--methods {method}: failed, exit code {process.exitcode}")


class RandomSource:
    """A model of random numbers, made when they are read."""

    format = "hf"
    dtype = "bfloat16"
    description = "random"
    tokenizer: Path | None = None
    iteration: int | None = None
    consumed_samples: int | None = None

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.notes: list[str] = []
        self.bytes_read = 0
        self.seconds = 0.0
        self._tensors = {tensor.name: tensor for tensor in model_tensors(config)}
        self._random = np.random.default_rng(0)

    def names(self) -> list[str]:
        """Our dotted names of all tensors."""
        return list(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """bfloat16, below 2 in magnitude, laid out as Hugging Face stores it."""
        began = time.perf_counter()
        tensor = self._tensors[name]
        bits = self._random.integers(0, 2**16, tensor.torch_shape, np.uint16)
        bits &= np.uint16(0xBFFF)
        self.bytes_read += bits.nbytes
        self.seconds += time.perf_counter() - began
        return tensor.from_torch(bits.view(ml_dtypes.bfloat16))

    def stored(self) -> list[StoredName]:
        """The tensors by our names."""
        return [(name, tensor.shape, self.dtype) for name, tensor in self._tensors.items()]

    def close(self) -> None:
        """Nothing is open."""


def _measure(method: str, layers: int) -> None:
    keep_freed_memory()
    source = RandomSource(
        ModelConfig(
            vocab_size=32000,
            hidden_size=5120,
            intermediate_size=13824,
            num_layers=layers,
            num_heads=40,
        )
    )
    shape = Shape(max(1, layers * 4 // 5), 4096, 11008, 32, 32)
    began = time.perf_counter()
    scores = random_scores(source.config, 0) if method == "random" else magnitude_scores(source)
    scored = time.perf_counter()
    selection = choose(scores, shape, source.config)
    pruned = PrunedSource(source, selection, norm_scales(scores, selection))
    written = 0
    for tensor in model_tensors(pruned.config):
        written += np.ascontiguousarray(tensor.to_torch(pruned.read(tensor.name))).nbytes
    ended = time.perf_counter()
    result = {
        "method": method,
        "layers": layers,
        "layers_kept": shape.num_layers,
        "seconds": round(ended - began, 1),
        "scoring_seconds": round(scored - began, 1),
        "making_seconds": round(source.seconds, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "bytes_read": source.bytes_read,
        "bytes_written": written,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    run_command_line(main)
