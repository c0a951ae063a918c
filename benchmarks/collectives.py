"""Collectives of compiled training steps beside what closed forms say they must be.

    python benchmarks/collectives.py            # small model, 8 virtual CPU devices
    python benchmarks/collectives.py --cuda     # 13B width, 4 layers, 8 and 32 H100s, no GPU needed

Prints one JSON line a layout, kind, mesh axes and dtype: calls and operand bytes of one device in
one step, expected and compiled. Where XLA for CPU compiles, runs are float32, because it sends
bfloat16 as float32; and over tensor it makes all-reduces, more of them, where a GPU has
reduce-scatters. Calls expected are those of the program; a compiler may merge neighbours (null:
always merged). All-reduces over tensor are norms' gradients: a GPU sums micro batches first.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import track

from dongwu_jax.command_line import run_command_line
from dongwu_jax.config import RunConfig, overlay, parse_config
from dongwu_jax.plan.cluster import find_gpu
from dongwu_jax.plan.compiling import compile_step
from dongwu_jax.plan.deviceless import Backend, choose_backend
from dongwu_jax.plan.expected import expected_collectives, negligible_bytes

Sections = dict[str, dict[str, Any]]

_SMALL: Sections = {
    "model": {
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_layers": 2,
        "num_heads": 8,
        "max_position_embeddings": 128,
    },
    "data": {"sequence_length": 128},
    "training": {"global_batch_size": 16, "duration": 10},
    "precision": {"compute_dtype": "float32"},
}
_LARGE: Sections = {
    "model": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_layers": 4,
        "num_heads": 40,
        "max_position_embeddings": 4096,
    },
    "data": {"sequence_length": 4096},
    "training": {"global_batch_size": 32, "duration": 10, "remat": "attention"},
}
_ZERO1 = {"rules": {"embed": ["fsdp", "context", "data", "pipe"]}}
_ON_8: dict[str, Sections] = {
    "data 8": {"mesh": {"data": 8}},
    "data 8, ZeRO-1": {"mesh": {"data": 8}, "sharding": _ZERO1},
    "fsdp 8": {"mesh": {"fsdp": 8}},
    "tensor 4, data 2": {"mesh": {"tensor": 4, "data": 2}},
    "context 4 ulysses, data 2": {"mesh": {"context": 4, "data": 2}},
    "context 4 ring, data 2": {
        "mesh": {"context": 4, "data": 2},
        "sharding": {"context_attention": "ring"},
    },
    "pipe 2, data 4": {"mesh": {"pipe": 2, "data": 4}},
    "pipe 2 x 2 virtual, data 4": {
        "mesh": {"pipe": 2, "data": 4},
        "model": {"num_layers": 4},
        "training": {"virtual_stages": 2},
    },
    "fsdp 4, tensor 2": {"mesh": {"fsdp": 4, "tensor": 2}},
    "pipe 2, fsdp 2, tensor 2": {"mesh": {"pipe": 2, "fsdp": 2, "tensor": 2}},
    "fsdp 2, context 2, tensor 2": {"mesh": {"fsdp": 2, "context": 2, "tensor": 2}},
}
_ON_32: dict[str, Sections] = {
    "fsdp 32": {"mesh": {"fsdp": 32}},
    "fsdp 4, tensor 8": {"mesh": {"fsdp": 4, "tensor": 8}},
    "pipe 4, data 2, tensor 4": {"mesh": {"pipe": 4, "data": 2, "tensor": 4}},
    "fsdp 4, context 2, tensor 4": {"mesh": {"fsdp": 4, "context": 2, "tensor": 4}},
}


def main() -> None:
    """Compile each layout and print its lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cuda", action="store_true", help="compile for H100s (needs the package's `plan` extra)"
    )
    parser.add_argument("--layout", help="only layouts whose name contains this")
    options = parser.parse_args()
    backend = choose_backend("cuda" if options.cuda else "cpu")
    base = _LARGE if options.cuda else _SMALL
    runs = [(8, name, layout) for name, layout in _ON_8.items()]
    if options.cuda:
        runs += [(32, name, layout) for name, layout in _ON_32.items()]
    chosen = [run for run in runs if options.layout is None or options.layout in run[1]]
    for count, name, layout in track(chosen, "compiling", console=Console(stderr=True)):
        config = parse_config(overlay(base, layout), source=f"layout {name}")
        for line in _lines(config, count, backend):
            print(json.dumps({"devices": count, "layout": name} | line), flush=True)


def _lines(config: RunConfig, device_count: int, backend: Backend) -> Iterator[dict[str, Any]]:
    """Each collective that is expected or compiled, and the partitioner's complaints."""
    expected = {
        (one.kind, one.axes, one.dtype): one for one in expected_collectives(config, device_count)
    }
    step = compile_step(config, find_gpu("h100"), device_count, backend)
    compiled = {(total.kind, total.axes, total.dtype): total for total in step.collectives}
    for key in sorted(expected.keys() | compiled.keys()):
        wanted, found = expected.get(key), compiled.get(key)
        few = negligible_bytes(config, device_count, key[1])
        if wanted is None and found is not None and found.operand_bytes <= few * found.calls:
            continue
        yield {
            "kind": key[0],
            "axes": "+".join(key[1]),
            "dtype": key[2],
            "calls_expected": wanted.calls if wanted else 0,
            "calls_compiled": found.calls if found else 0,
            "bytes_expected": wanted.operand_bytes if wanted else 0,
            "bytes_compiled": found.operand_bytes if found else 0,
        }
    for complaint in step.complaints:
        yield {"complaint": complaint}


if __name__ == "__main__":
    run_command_line(main)
