"""Attention of packed samples on one GPU, forward and backward: cuDNN with a mask, and XLA.

    python benchmarks/packed_attention.py [--length 4096] [--rows 4] [--heads 32] [--kv-heads 8]

Samples have random lengths with a median of 244 tokens, as conversations do. Prints one JSON line a
case: milliseconds of both passes (the median of 10 repetitions), and temporary memory; beside them
cuDNN's causal attention over whole rows, which keeps nothing apart, and PyTorch's
scaled_dot_product_attention with the same mask in a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.errors import UserError


def main(command_line: list[str] | None = None) -> int:
    """Measure all cases."""
    options = _parse(command_line)
    if options.torch:
        _print("torch_sdpa_mask", options, _torch(options))
        return 0
    import jax

    if jax.default_backend() != "gpu":
        raise UserError("no GPU here: cuDNN's attention needs one, and JAX's CUDA plugin")
    device = jax.devices()[0].device_kind
    for name, implementation, packed in (
        ("cudnn_causal_whole_rows", "cudnn", False),
        ("cudnn_packed", "cudnn", True),
        ("xla_packed", "xla", True),
    ):
        _print(name, options, _ours(options, implementation, packed) | {"device": device})
    words = sys.argv[1:] if command_line is None else command_line
    return subprocess.run([sys.executable, __file__, "--torch", *words]).returncode


def _parse(command_line: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=positive_int, default=4096, help="tokens of a row")
    parser.add_argument("--rows", type=positive_int, default=4, help="of the batch (default 4)")
    parser.add_argument("--heads", type=positive_int, default=32, help="of queries (default 32)")
    parser.add_argument(
        "--kv-heads", type=positive_int, default=8, help="of keys and values (default 8)"
    )
    parser.add_argument(
        "--head-dim", type=positive_int, default=128, help="width of a head (default 128)"
    )
    parser.add_argument("--torch", action="store_true", help="PyTorch alone")
    return parser.parse_args(command_line)


def _segments(options: argparse.Namespace) -> np.ndarray:
    """int32 [rows, length]: numbers of the samples that rows are packed with."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(options.rows):
        lengths = np.ceil(random.lognormal(np.log(244), 0.8, options.length)).astype(int)
        rows.append(np.repeat(np.arange(options.length), lengths)[: options.length])
    return np.stack(rows).astype(np.int32)


def _arrays(options: argparse.Namespace) -> list[np.ndarray]:
    """Query, key, value and the gradient of the output, float32 [rows, length, heads, head_dim]."""
    random = np.random.default_rng(1)
    heads = options.heads, options.kv_heads, options.kv_heads, options.heads
    shapes = [(options.rows, options.length, count, options.head_dim) for count in heads]
    return [random.standard_normal(shape, np.float32) for shape in shapes]


def _ours(options: argparse.Namespace, implementation: Any, packed: bool) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    from dongwu_jax.models.attention_kernels import attention_backward, attention_forward

    segments = jnp.asarray(_segments(options)) if packed else None

    def both(query: jax.Array, key: jax.Array, value: jax.Array, gradient: jax.Array) -> Any:
        kept = attention_forward(query, key, value, True, implementation, segments)
        return attention_backward(
            query, key, value, *kept, gradient, True, implementation, segments
        )

    arrays = [jnp.asarray(array, jnp.bfloat16) for array in _arrays(options)]
    compiled = jax.jit(both).lower(*arrays).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    seconds = _median(lambda: jax.block_until_ready(compiled(*arrays)))
    return {"milliseconds": 1e3 * seconds, "temporary_gib": memory.temp_size_in_bytes / 2**30}


def _torch(options: argparse.Namespace) -> dict[str, float]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    segments = torch.tensor(_segments(options), device="cuda")
    same = segments[:, None, :, None] == segments[:, None, None, :]
    mask = same & torch.ones(same.shape[-2:], dtype=torch.bool, device="cuda").tril()
    *inputs, gradient = (
        torch.tensor(array, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for array in _arrays(options)
    )
    for array in inputs:
        array.requires_grad_()

    @torch.compile
    def attend(query: Any, key: Any, value: Any) -> Any:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)

    def both() -> None:
        torch.autograd.grad(attend(*inputs), inputs, gradient)
        torch.cuda.synchronize()

    both()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = _median(both)
    peak = torch.cuda.max_memory_allocated() - before
    return {"milliseconds": 1e3 * seconds, "temporary_gib": peak / 2**30}


def _median(run: Callable[[], Any]) -> float:
    """Seconds of a run, after two that do not count."""
    seconds = []
    for repetition in range(12):
        started = time.perf_counter()
        run()
        if repetition > 1:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _print(name: str, options: argparse.Namespace, figures: dict[str, Any]) -> None:
    shape = {key: value for key, value in vars(options).items() if key != "torch"}
    print(json.dumps({"case": name} | shape | figures), flush=True)


if __name__ == "__main__":
    run_command_line(main)
