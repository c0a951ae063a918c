"""Two real processes of four devices each: the same run as one process of eight."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import run_config

from dongwu_jax.config import dump_config


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def launch(config_file: Path, processes: int, *flags: str) -> None:
    """Run the training command in several processes and wait for all of them."""
    command = [sys.executable, "-m", "dongwu_jax.train", "--config", str(config_file), *flags]
    port, running = free_port(), []
    for rank in range(processes):
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(rank),
            }
        running.append(subprocess.Popen(command, env=environment, text=True, stderr=-1, stdout=-3))
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]


def losses(folder: Path) -> list[float]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "tensor": 4}], ids=str)
def test_two_processes_equal_one(mesh, tmp_path):
    curves = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        config = run_config(
            folder, mesh=mesh, training={"micro_batch_size": 1}, checkpoint={"interval": 4}
        )
        (folder / "run.yaml").write_text(dump_config(config))
        launch(folder / "run.yaml", processes, "--stop-after", "6")
        launch(folder / "run.yaml", processes)  # resumes from what all processes wrote
        curves[processes] = losses(folder)
    assert len(curves[2]) == 20
    np.testing.assert_allclose(curves[2], curves[1], rtol=1e-5)
