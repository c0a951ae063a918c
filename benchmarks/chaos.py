"""Kill a small training run again and again, at moments drawn by lot, and start it again.

Whatever is killed when, the weights, the optimizer's state and the curves at the end must have the
bits of a run that nobody touched. One JSON line a kill in FOLDER/kills.jsonl, a table at the end;
the same command goes on after it was stopped itself.

Example:
    python benchmarks/chaos.py runs/chaos --kills 50
    python benchmarks/chaos.py runs/chaos2 --kills 10 --processes 2
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from rich.console import Console
from rich.table import Table

from dongwu_jax import exit_codes
from dongwu_jax.command_line import positive_int, run_command_line, whole_number
from dongwu_jax.config import RunConfig, dump_config, parse_config
from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter
from dongwu_jax.errors import UserError
from dongwu_jax.output_files import check_output_file
from dongwu_jax.report.goodput import find_intervals, goodput, totals
from dongwu_jax.report.run_folder import read_run_folder

PHASES = ("start-up", "compiling", "steps", "saving", "checksums", "evaluation")
_EVALUATION_INTERVAL, _CHECKPOINT_INTERVAL = 60, 100
_PATIENCE_SECONDS = 3600  # the machine may have other work, too


@dataclass(frozen=True)
class Run:
    """A folder in which the run is done, once or in pieces."""

    folder: Path
    processes: int

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return self.folder / "checkpoints"

    def records(self, name: str) -> list[dict[str, Any]]:
        """The complete lines of one of its files."""
        path = self.folder / name
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def last_step(self) -> int:
        """The last step that was reported, 0 before the first."""
        return max((line["step"] for line in self.records("metrics.jsonl")), default=0)

    def newest_checkpoint(self) -> int:
        """The newest complete step, 0 before the first."""
        if not self.checkpoints.is_dir():
            return 0
        names = [entry.name for entry in self.checkpoints.iterdir()]
        return max((int(name) for name in names if name.isdigit()), default=0)

    def phase(self, events_before: int, first: int) -> str:
        """What a start is doing, by what it has written.

        Args:
            events_before: lines of the run's log that are of earlier starts.
            first: the newest checkpoint when it began.
        """
        kinds = {event["event"] for event in self.records("events.jsonl")[events_before:]}
        if "start" not in kinds:
            return "start-up"
        if "compiled" not in kinds:
            return "compiling"
        if any(self.checkpoints.glob("*.orbax-checkpoint-tmp*")):
            return "saving"
        newest = self.newest_checkpoint()
        written = list((self.checkpoints / str(newest)).glob("checksums.*"))
        if newest > first and len(written) < self.processes:
            return "checksums"
        last = self._last_metrics()
        between = "loss" in last and last["step"] % _EVALUATION_INTERVAL == 0
        return "evaluation" if between else "steps"

    def _last_metrics(self) -> dict[str, Any]:
        """The last line of the metrics, read without the others: it is looked for all the time."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return {}
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 2000, 0))
            lines = [line for line in file.read().splitlines() if line[:1] + line[-1:] == b"{}"]
        return json.loads(lines[-1]) if lines else {}

    def start(self, config: Path) -> list[subprocess.Popen[bytes]]:
        """Start its processes."""
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(config.parent / "compiled")
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        if self.processes > 1:
            environment["JAX_COORDINATOR_ADDRESS"] = f"localhost:{_free_port()}"
            environment["JAX_NUM_PROCESSES"] = str(self.processes)
        command = [sys.executable, "-m", "dongwu_jax.train", "--config", str(config)]
        command += [f"checkpoint.directory={self.checkpoints}"]
        self.folder.mkdir(exist_ok=True)
        started = []
        for rank in range(self.processes):
            own = {"JAX_PROCESS_ID": str(rank)} if self.processes > 1 else {}
            with (self.folder / f"process{rank}.txt").open("ab") as output:
                started.append(
                    subprocess.Popen(command, env=environment | own, stdout=output, stderr=output)
                )
        return started

    def finish(self, config: Path) -> None:
        """Start it, and let it come to its end.

        Raises:
            UserError: it does not.
        """
        started = self.start(config)
        try:
            for rank, process in enumerate(started):
                if process.wait(_PATIENCE_SECONDS):
                    text = (self.folder / f"process{rank}.txt").read_text()[-2000:]
                    raise UserError(f"process {rank} ended with {process.returncode}:\n{text}")
        finally:
            for process in started:
                process.kill()


def main(arguments: list[str] | None = None) -> int:
    """Kill, compare, report."""
    options = _parse(arguments)
    folder: Path = options.folder.absolute()
    kills = folder / "kills.jsonl"
    check_output_file(kills)
    config = _write_run(folder, options.processes, options.steps)
    reference = Run(folder / "reference", options.processes)
    if reference.newest_checkpoint() < options.steps:
        shutil.rmtree(reference.folder, ignore_errors=True)
        reference.finish(config)
    done = [json.loads(line) for line in kills.read_text().splitlines()] if kills.exists() else []
    for number in range(len(done), options.kills):
        dice = random.Random(f"{options.seed}-{number}")
        record = {"kill": number, **_kill_once(folder, config, options, dice, done)}
        done.append(record)
        with kills.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)
    last = Run(folder / f"round{done[-1]['round']}", options.processes)
    last.finish(config)
    differences = {
        name: _differences(Run(folder / name, options.processes), reference)
        for name in sorted({f"round{record['round']}" for record in done})
    }
    _report(done, differences, folder)
    return 1 if any(differences.values()) else 0


def _kill_once(
    folder: Path,
    config: Path,
    options: argparse.Namespace,
    dice: random.Random,
    done: list[dict[str, Any]],
) -> dict[str, Any]:
    """Start the run, or a new one where the last has come to its end, and kill a process."""
    round_number = done[-1]["round"] if done else 0
    while True:
        run = Run(folder / f"round{round_number}", options.processes)
        target, began = dice.choice(PHASES), time.monotonic()
        before, events_before = run.newest_checkpoint(), len(run.records("events.jsonl"))
        processes = run.start(config)
        if _wait_for(run, target, dice, (events_before, before), processes):
            break
        round_number += run.newest_checkpoint() >= options.steps
    victim = dice.randrange(options.processes)
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    processes[victim].wait()
    phase = run.phase(events_before, before)
    others = [process for process in processes if process is not processes[victim]]
    codes = [process.wait(_PATIENCE_SECONDS) for process in others]
    newest = run.newest_checkpoint()
    reached = newest if phase in ("start-up", "compiling") else max(run.last_step(), newest)
    return {
        "round": round_number,
        "aimed_at": target,
        "phase": phase,
        "victim": victim,
        "others_ended_with": codes,
        "others_ended_after_seconds": round(time.monotonic() - killed, 1) if others else None,
        "resumed_from": before,
        "reached": reached,
        "newest_checkpoint": newest,
        "steps_lost": reached - newest,
        "seconds": round(killed - began, 1),
    }


def _wait_for(
    run: Run,
    target: str,
    dice: random.Random,
    beginning: tuple[int, int],
    processes: list[subprocess.Popen[bytes]],
) -> bool:
    """Wait for a phase, and then for a while drawn by lot; False: the run has ended by itself."""
    longest = {"start-up": 4.0, "compiling": 1.0, "steps": 3.0}.get(target, 0.1)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    # Some of what a phase writes may come after its first: not always the first of a start.
    skipped = dice.randrange(3) if target in ("saving", "checksums", "evaluation") else 0
    inside = False
    while True:
        if any(process.poll() is not None for process in processes):
            codes = [process.wait(_PATIENCE_SECONDS) for process in processes]
            if any(codes):
                raise UserError(f"{run.folder}: ended with {codes}; see process0.txt there")
            return False
        if time.monotonic() > deadline:
            raise UserError(f"{run.folder}: no {target} within {_PATIENCE_SECONDS} s")
        now_inside = run.phase(*beginning) == target
        if now_inside and not inside:
            if not skipped:
                time.sleep(dice.uniform(0, longest))
                return all(process.poll() is None for process in processes)
            skipped -= 1
        inside = now_inside
        time.sleep(0.002)


def _differences(run: Run, reference: Run) -> list[str]:
    """What of the end of two runs is not the same, bit for bit."""
    step = reference.newest_checkpoint()
    found = [f"ends at step {run.newest_checkpoint()}"] if run.newest_checkpoint() != step else []
    for item in ("parameters", "optimizer"):
        one, two = (_stored(each.checkpoints / str(step) / item) for each in (run, reference))
        found += [
            f"{item}: {name.decode()}"
            for name in one.keys() | two.keys()
            if one.get(name) != two.get(name)
        ]
    curves = [_curve(each) for each in (run, reference)]
    if curves[0] != curves[1]:
        found.append("metrics.jsonl")
    return found


def _stored(item: Path) -> dict[bytes, bytes]:
    """All that an item of a checkpoint holds, as stored."""
    base = {"driver": "file", "path": f"{item}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    return {key: store.read(key).result().value for key in store.list().result()}


def _curve(run: Run) -> list[dict[str, Any]]:
    """What was reported of each step, without what depends on the clock."""
    names = ("step", "loss", "gradient_norm", "learning_rate", "validation_loss")
    return [{n: line[n] for n in names if n in line} for line in run.records("metrics.jsonl")]


def _report(done: list[dict[str, Any]], differences: dict[str, list[str]], folder: Path) -> None:
    table = Table("phase", "kills", "steps lost, mean", "most", title="killed by SIGKILL")
    by_phase = collections.defaultdict(list)
    for record in done:
        by_phase[record["phase"]].append(record["steps_lost"])
    for phase in PHASES:
        lost = by_phase[phase] or [0]
        table.add_row(phase, str(len(by_phase[phase])), f"{np.mean(lost):.1f}", str(max(lost)))
    console = Console(width=100)
    console.print(table)
    codes = collections.Counter(code for record in done for code in record["others_ended_with"])
    if codes:
        slowest = max(record["others_ended_after_seconds"] for record in done)
        names = {exit_codes.PEER_LOST: "a peer is gone", -signal.SIGABRT: "JAX aborted"}
        said = ", ".join(f"{names.get(code, code)}: {count}" for code, count in codes.items())
        console.print(f"the other processes ended with {said}; after {slowest} s at most")
    for name, differing in differences.items():
        run = read_run_folder(folder / name, [])
        seconds = totals(find_intervals(run.sessions, run.metrics))
        verdict = f"DIFFERS: {differing[:5]}" if differing else "equal bit for bit"
        console.print(
            f"{name}: {verdict}; goodput {goodput(seconds) or 0:.0%}; seconds: "
            + ", ".join(f"{kind} {value:.0f}" for kind, value in seconds.items() if value >= 0.5)
        )


def _write_run(folder: Path, processes: int, steps: int) -> Path:
    if not (folder / "text.idx").exists():
        rng = np.random.default_rng(0)
        with IndexedDatasetWriter(folder / "text", np.dtype(np.uint16)) as writer:
            for _ in range(200):
                size = int(rng.integers(50, 400))
                tokens = np.cumsum(rng.integers(1, 4, size=size)) % 120 + 3
                writer.add_document(tokens.astype(np.uint16), [size])
    path = folder / "run.yaml"
    path.write_text(dump_config(_config(folder, processes, steps)))
    return path


def _config(folder: Path, processes: int, steps: int) -> RunConfig:
    sections = {
        "model": {
            "vocab_size": 128,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 32,
        },
        "mesh": {"fsdp": processes},
        "data": {
            "blend": str(folder / "text"),
            "index_cache": str(folder / "cache"),
            "sequence_length": 32,
            "split": "90,10,0",
        },
        "training": {"duration": steps, "global_batch_size": 8, "micro_batch_size": 4},
        "precision": {"compute_dtype": "float32"},
        "checkpoint": {"interval": _CHECKPOINT_INTERVAL, "keep_last": 2},
        "evaluation": {"interval": _EVALUATION_INTERVAL, "batches": 40},
        "logging": {"tensorboard": False},
    }
    return parse_config(sections, "chaos")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/chaos.py",
        description="Kill a small training run (on the CPU) at moments drawn by lot, start it "
        "again each time, and compare its end with an undisturbed run's.",
        epilog="example: python benchmarks/chaos.py runs/chaos --kills 50",
    )
    parser.add_argument("folder", type=Path, help="for the runs; a begun one is gone on with")
    parser.add_argument("--kills", type=positive_int, default=50, help="how many (50)")
    parser.add_argument("--processes", type=positive_int, default=1, help="of the run (1)")
    parser.add_argument("--steps", type=positive_int, default=4000, help="of the run (4000)")
    parser.add_argument("--seed", type=whole_number, default=0, help="of the lots (0)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
