"""The runs that `benchmarks/multigpu.py` times: possible, and fit into the GPUs' memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import load_script

from dongwu_jax.plan.cluster import find_gpu
from dongwu_jax.plan.planning import sketch_plan

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_every_case_is_a_run_that_fits(gpus, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    cases = load_script(BENCHMARKS / "multigpu_cases.py").cases(gpus)
    assert {"weak_1", f"weak_{gpus}", "13b_fsdp", "13b_32k_context"} <= set(cases)
    h100 = find_gpu("h100")
    for name, case in cases.items():
        config = case.config(gpus)
        plan = sketch_plan(config, h100, 1 if case.one_gpu else gpus)
        assert plan.estimate.total < 0.9 * h100.memory_bytes, name
        small = case.config(gpus, rehearsal=True)
        assert small.mesh == config.mesh
        if case.peer_rows:
            assert case.sequences % case.peer_rows == 0, name


@pytest.mark.slow
def test_a_case_is_rehearsed_without_a_gpu():
    command = [sys.executable, BENCHMARKS / "multigpu.py", "speed", "--rehearse", "--steps", "1"]
    process = subprocess.run([*command, "--only", "weak_8"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    _, line = map(json.loads, process.stdout.splitlines())
    assert "failed" not in line, line["failed"]
    assert line["seconds"] > 0
