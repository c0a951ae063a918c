"""Try changes to a training step one at a time on the GPU that is here.

    source tools/launch/environment.sh
    python benchmarks/sweep.py [--case 13b] [--only scan remat] [--steps 8]

Prints a JSON line a change, the step as it is first and last (their difference is the noise):
seconds, how much faster than as it is, memory. Add a hypothesis to `CHANGES`; keep what its
measurement speaks for, in `dongwu_jax/training/compilation.py` or as a default.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from train_cases import CASES
from train_step import run_step

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.config import RunConfig, overlay, parse_config

# Settings of the run, and options of XLA's, by what they try.
CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "remat_none": ({"training": {"remat": "none"}}, []),
    "remat_minimal": ({"training": {"remat": "minimal"}}, []),
    "remat_qkv_attention": ({"training": {"remat": "qkv_attention"}}, []),
    "remat_attention": ({"training": {"remat": "attention"}}, []),
    "remat_full": ({"training": {"remat": "full"}}, []),
    "remat_offload": ({"training": {"remat": "offload"}}, []),
    "remat_offload_not_hidden": (
        {"training": {"remat": "offload"}},
        ["xla_gpu_enable_latency_hiding_scheduler=false"],
    ),
    "scan": ({"training": {"scan_layers": True}}, []),
    "scan_minimal": ({"training": {"scan_layers": True, "remat": "minimal"}}, []),
    "scan_attention": ({"training": {"scan_layers": True, "remat": "attention"}}, []),
    "scan_double_buffered": (
        {"training": {"scan_layers": True}},
        ["xla_gpu_enable_while_loop_double_buffering=true"],
    ),
    "scan_slice_fusion": (
        {"training": {"scan_layers": True}},
        ["xla_gpu_enable_dynamic_slice_fusion=true"],
    ),
    "sums_bfloat16": ({"precision": {"grad_accumulation_dtype": "bfloat16"}}, []),
    "moment_bfloat16": ({"optimizer": {"first_moment_dtype": "bfloat16"}}, []),
    "loss_chunks": ({"training": {"loss_chunk_tokens": 1024}}, []),
    "triton_matmuls": ({}, ["xla_gpu_enable_triton_gemm=true"]),
    "latency_hiding": ({}, ["xla_gpu_enable_latency_hiding_scheduler=true"]),
    "joined_matmuls": ({}, ["xla_gpu_dot_merger_threshold_mb=100000"]),
    "loose_autotuning": ({}, ["xla_gpu_autotune_gemm_rtol=0.1"]),
}


def main() -> int:
    """Measure the changes that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case",
        choices=CASES,
        default="13b",
        metavar="CASE",
        help="of train_cases.py (default 13b)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=CHANGES, metavar="CHANGE", help="changes to try (default all)"
    )
    parser.add_argument("--steps", type=positive_int, default=8, help="steps to time (8)")
    options = parser.parse_args()
    config = CASES[options.case].config()
    names = ["as it is", *(options.only or CHANGES), "as it is"]
    before: float | None = None
    for name in names:
        settings, xla_options = CHANGES.get(name, ({}, []))
        with tempfile.TemporaryDirectory() as cache:
            found = run_step(_changed(config, settings), options.steps, Path(cache), xla_options)
        line = {"case": options.case, "change": name} | found
        if "seconds" in found:
            before = before or found["seconds"]
            line["faster"] = round(before / found["seconds"] - 1, 4)
        print(json.dumps(line), flush=True)
    return 0


def _changed(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    return parse_config(overlay(config.model_dump(mode="json"), settings), "sweep")


if __name__ == "__main__":
    run_command_line(main)
