"""Twenty steps of a small model in layouts over all GPUs, against one of them.

    python benchmarks/multigpu_numerics.py GPUS [--rehearse]      (multigpu.py calls it)

In float32 and in bfloat16, with heads as wide as cuDNN's attention takes. Prints a JSON line a
layout as `layouts.py` does, and ends with 1 if one differs by more than its format explains.
"""

import argparse
import json
import sys
from typing import Any

import layouts

from dongwu_jax.config import RunConfig, overlay, parse_config

_MODEL = {"hidden_size": 512, "num_heads": 8, "num_kv_heads": 8, "num_layers": 8}
# Differences of the loss over all steps, and of any weight's first gradient.
_LIMITS = {"float32": (1e-4, 1e-4), "bfloat16": (5e-3, 0.05)}


def layouts_over(gpus: int) -> dict[str, dict[str, Any]]:
    """Every axis over all GPUs, and pairs of axes."""
    single: dict[str, dict[str, Any]] = {
        "data": {"mesh": {"data": gpus}},
        "zero1": {"mesh": {"data": gpus}, "sharding": {"rules": {"embed": ["data"]}}},
        "fsdp": {"mesh": {"fsdp": gpus}, "training": {"remat": "attention"}},
        "fsdp_offload": {"mesh": {"fsdp": gpus}, "training": {"remat": "offload"}},
        "tensor": {"mesh": {"tensor": gpus}},
        "ulysses": {"mesh": {"context": gpus}},
        "ring": {"mesh": {"context": gpus}, "sharding": {"context_attention": "ring"}},
        "pipe": {"mesh": {"pipe": gpus}},
    }
    if gpus < 4:
        return single
    half = gpus // 2
    return single | {
        "tensor_fsdp": {"mesh": {"tensor": half, "fsdp": 2}},
        "context_fsdp": {"mesh": {"context": half, "fsdp": 2}},
        "pipe_fsdp": {"mesh": {"pipe": half, "fsdp": 2}},
        "pipe_virtual_tensor": {
            "mesh": {"pipe": half, "tensor": 2},
            "training": {"virtual_stages": 2, "remat": "attention"},
        },
    }


def settings_of(settings: dict[str, Any], dtype: str) -> RunConfig:
    """A layout's run."""
    changes = {
        "model": _MODEL | {"initializer_range": 0.05},
        "optimizer": {"learning_rate": 1e-3},
        "precision": {"compute_dtype": dtype},
    }
    return parse_config(overlay(overlay(layouts.SETTINGS, changes), settings), "layout")


def main() -> int:
    """Compare all layouts in both formats."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gpus", type=int)
    parser.add_argument("--rehearse", action="store_true", help="in float32 alone")
    options = parser.parse_args()
    failed = False
    for dtype in ["float32"] if options.rehearse else _LIMITS:
        one = layouts.on_one_device(settings_of({}, dtype))
        for name, settings in layouts_over(options.gpus).items():
            found = layouts.difference(
                layouts.train(settings_of(settings, dtype), options.gpus), one
            )
            of_loss, of_gradient = _LIMITS[dtype]
            small = found.loss <= of_loss and found.gradient <= of_gradient
            line = {"layout": name, "dtype": dtype, **vars(found), "equal": small}
            print(json.dumps(line), flush=True)
            failed |= not small
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
