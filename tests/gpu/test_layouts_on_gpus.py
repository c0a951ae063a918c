"""Every axis over two real GPUs: NCCL, and cuDNN attention inside the program of all devices.

Skipped with fewer. Run with: JAX_PLATFORMS=cuda pytest -m gpu -n 0
"""

from pathlib import Path

import jax
import pytest
from command_lines import load_script

from dongwu_jax.config import RunConfig, overlay, parse_config

layouts = load_script(Path(__file__).parents[2] / "benchmarks" / "layouts.py")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        jax.default_backend() != "gpu" or len(jax.devices()) < 2, reason="needs two GPUs"
    ),
]

LAYOUTS = {
    "data": {"mesh": {"data": 2}},
    "zero1": {"mesh": {"data": 2}, "sharding": {"rules": {"embed": ["data"]}}},
    "fsdp": {"mesh": {"fsdp": 2}},
    "fsdp_remat": {"mesh": {"fsdp": 2}, "training": {"remat": "attention"}},
    "tensor": {"mesh": {"tensor": 2}},
    "ulysses": {"mesh": {"context": 2}},
    "ring": {"mesh": {"context": 2}, "sharding": {"context_attention": "ring"}},
    "pipe": {"mesh": {"pipe": 2}},
    "pipe_virtual_remat": {
        "mesh": {"pipe": 2},
        "training": {"virtual_stages": 2, "remat": "attention"},
    },
}
# Heads of a width that cuDNN takes; a rate that does not blow roundings up.
WIDE = {"hidden_size": 256, "num_heads": 4, "num_kv_heads": 2, "initializer_range": 0.05}


def settings(name: str, dtype: str) -> RunConfig:
    """A layout's run."""
    changes = {
        "model": WIDE,
        "optimizer": {"learning_rate": 1e-3},
        "precision": {"compute_dtype": dtype},
        **LAYOUTS[name],
    }
    return parse_config(overlay(layouts.SETTINGS, changes), f"layout {name}")


@pytest.fixture(scope="module")
def one_gpu():
    return {
        dtype: layouts.on_one_device(settings("data", dtype)) for dtype in ("float32", "bfloat16")
    }


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "of_loss", "of_gradient"), [("float32", 1e-4, 1e-4), ("bfloat16", 5e-3, 0.05)]
)
def test_twenty_steps_on_two_gpus_equal_one(name, dtype, of_loss, of_gradient, one_gpu):
    reference = one_gpu[dtype]
    assert reference.losses[-1] < reference.losses[0] - 1
    found = layouts.difference(layouts.train(settings(name, dtype), 2), reference)
    print(name, dtype, found)
    assert found.loss < of_loss
    assert found.gradient < of_gradient, found.weight
