"""The same training step in PyTorch, as its users write it: the bar for `train_step.py`.

Blocks and loss through torch.compile, scaled_dot_product_attention, bfloat16 autocast over float32
weights, fused AdamW, optional activation checkpointing of every block. One GPU.

    python benchmarks/torch_peer.py '{"hidden_size": 5120, ...}' STEPS     (train_step.py calls it)
    python benchmarks/torch_peer.py ceiling
"""

import json
import sys
import time
from typing import Any

import torch
import torch.nn.functional as functional
from torch import nn
from torch.utils.checkpoint import checkpoint


class Norm(nn.Module):
    """RMSNorm in float32, given back in bfloat16."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of [..., width], in any dtype."""
        return functional.rms_norm(x.float(), (x.shape[-1],), self.scale.float(), 1e-5).bfloat16()


class Block(nn.Module):
    """A Llama block with joined QKV and gate-up matrices."""

    def __init__(self, width: int, inner: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = Norm(width), Norm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        """Of hidden states, [rows, length, width], and the rotary tables."""
        rows, length, width = x.shape

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(rows, length, self.heads, -1)

        def rotated(y: torch.Tensor) -> torch.Tensor:
            first, second = y.float().chunk(2, -1)
            halves = [first * cosine - second * sine, second * cosine + first * sine]
            return torch.cat(halves, -1).bfloat16()

        query, key, value = map(heads, self.qkv(self.attention_norm(x)).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(
            rotated(query).transpose(1, 2),
            rotated(key).transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
        )
        x = x + self.output(mixed.transpose(1, 2).reshape(rows, length, width))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)


class Model(nn.Module):
    """Embedding, blocks, norm, head and loss."""

    def __init__(self, shape: dict[str, int]):
        super().__init__()
        width, heads = shape["hidden_size"], shape["num_heads"]
        self.checkpointing = bool(shape["checkpointing"])
        self.embedding = nn.Embedding(shape["vocab_size"], width)
        self.layers = nn.ModuleList(
            Block(width, shape["intermediate_size"], heads) for _ in range(shape["num_layers"])
        )
        self.norm = Norm(width)
        self.head = nn.Linear(width, shape["vocab_size"], bias=False)
        cosine, sine = rotary_tables(shape)
        self.register_buffer("cosine", cosine)
        self.register_buffer("sine", sine)
        self.loss = torch.compile(_loss)
        for layer in self.layers:
            layer.compile()

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss of a token; both are [rows, length] of int64."""
        x = self.embedding(tokens).bfloat16()
        for layer in self.layers:
            arguments = (x, self.cosine, self.sine)
            x = (
                checkpoint(layer, *arguments, use_reentrant=False)
                if self.checkpointing
                else layer(*arguments)
            )
        return self.loss(self.head(self.norm(x)), labels)


def rotary_tables(shape: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, [1, length, 1, head_dim / 2], on the device of the context."""
    half = shape["hidden_size"] // shape["num_heads"] // 2
    positions = torch.arange(shape["sequence_length"]).float()
    angles = torch.outer(positions, 10000.0 ** (-torch.arange(half) / half))
    return angles.cos()[None, :, None], angles.sin()[None, :, None]


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def make_model(shape: dict[str, int]) -> Model:
    """The whole model on this GPU."""
    with torch.device("cuda"):
        model = Model(shape)
    initialize(model)
    return model


def initialize(model: nn.Module) -> None:
    """Random matrices, norms of ones."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.ones_(parameter)


def measure(model: nn.Module, shape: dict[str, int], steps: int) -> dict[str, Any]:
    """Mean seconds of steps one behind the other, memory at the peak, the last loss."""
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    size = (shape["rows"], shape["sequence_length"] + 1)
    tokens = torch.randint(shape["vocab_size"], size, device="cuda")
    first_step_seconds, started = 0.0, time.perf_counter()
    for step in range(steps + 2):
        for _ in range(shape["accumulation_steps"]):
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(tokens[:, :-1], tokens[:, 1:])
            (loss / shape["accumulation_steps"]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step < 2:
            torch.cuda.synchronize()
            first_step_seconds = first_step_seconds or time.perf_counter() - started
            timed = time.perf_counter()
    torch.cuda.synchronize()
    return {
        "peer_seconds": (time.perf_counter() - timed) / steps,
        "peer_gib": torch.cuda.max_memory_allocated() / 2**30,
        "peer_first_step_seconds": first_step_seconds,
        "peer_loss": loss.item(),
    }


def ceiling() -> dict[str, float]:
    """The fastest large bfloat16 product of this card in TFLOP/s: for a moment, and for seconds.

    A card at its power limit lowers its clock after a moment.
    """
    best = {"ceiling_tflops": 0.0, "sustained_ceiling_tflops": 0.0}
    for m, n, k in ((8192, 8192, 8192), (16384, 8192, 8192), (8192, 16384, 16384)):
        a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        b = torch.randn(k, n, device="cuda", dtype=torch.bfloat16)
        a @ b
        time.sleep(1)  # a rested card, for the momentary figure
        for name, teraflops in (("ceiling_tflops", 100), ("sustained_ceiling_tflops", 2000)):
            times = teraflops * 10**12 // (2 * m * n * k) + 1
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(times):
                a @ b
            torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            best[name] = max(best[name], times * 2 * m * n * k / seconds / 1e12)
    return best


def main() -> None:
    """Measure what the command line names, and print the figures as a line of JSON."""
    torch.set_float32_matmul_precision("high")
    match sys.argv[1:]:
        case ["ceiling"]:
            print(json.dumps(ceiling()))
        case [text, steps] if text.startswith("{") and steps.isdecimal():
            shape = json.loads(text)
            print(json.dumps(measure(make_model(shape), shape, int(steps))))
        case _:
            sys.exit(
                "torch_peer.py is started by train_step.py, as SHAPE STEPS or ceiling; run "
                "benchmarks/train_step.py --help"
            )


if __name__ == "__main__":
    main()
