"""Starting the training command in several real processes on this machine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from processes import free_port
from runs import run_config

from dongwu_jax.config import RunConfig, dump_config


@dataclass
class ProcessGroup:
    """Running processes, each with a file for what it prints."""

    processes: list[subprocess.Popen]
    outputs: list[Path]

    def output(self, rank: int) -> str:
        """What a process has printed, its wrapped log lines joined."""
        return " ".join(self.outputs[rank].read_text().split())

    def wait(self, rank: int, timeout: float = 240) -> int:
        return self.processes[rank].wait(timeout)

    def wait_until(self, reached: Callable[[], bool], timeout: float = 240) -> None:
        """Wait for a state of the run; fail when a process ends before."""
        deadline = time.monotonic() + timeout
        while not reached():
            for rank, process in enumerate(self.processes):
                assert process.poll() is None, self.output(rank)[-2000:]
            assert time.monotonic() < deadline, self.output(0)[-2000:]
            time.sleep(0.02)

    def succeed(self) -> None:
        for rank in range(len(self.processes)):
            assert self.wait(rank) == 0, self.output(rank)[-2000:]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def start(folder: Path, commands: list[list[str]], devices: int) -> ProcessGroup:
    """Start one process for each list of arguments, with `devices` among all of them."""
    processes, port = len(commands), free_port()
    outputs = [folder / f"process{rank}.txt" for rank in range(processes)]
    running = []
    for rank, arguments in enumerate(commands):
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(rank),
            }
        with outputs[rank].open("w") as output:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dongwu_jax.train", *arguments],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return ProcessGroup(running, outputs)


def train(folder: Path, processes: int, *flags: str, devices: int = 8) -> ProcessGroup:
    """Start the run that `write_run` wrote into `folder`."""
    return start(folder, [["--config", str(folder / "run.yaml"), *flags]] * processes, devices)


def write_run(folder: Path, **sections: dict) -> RunConfig:
    folder.mkdir(exist_ok=True)
    config = run_config(folder, **sections)
    (folder / "run.yaml").write_text(dump_config(config))
    return config


def losses(folder: Path) -> dict[int, float]:
    """The loss of each step that was reported, by step."""
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}
