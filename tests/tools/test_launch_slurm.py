"""slurm.sbatch, run for real; `srun` and `scontrol` are stand-ins."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from launchers import AWKWARD, LAUNCH, ONE_ENDS, REPORT, reports, started
from processes import all_gone, wait_until

from dongwu_jax import exit_codes


def sbatch(folder: Path, *command: object, **variables: str) -> tuple[list[str], dict[str, str]]:
    """The call of the batch script, as Slurm makes it: from a copy, in the folder of submission."""
    (folder / "tools").mkdir(exist_ok=True)
    if not (folder / "tools" / "launch").exists():
        (folder / "tools" / "launch").symlink_to(LAUNCH)
    script = shutil.copy(LAUNCH / "slurm.sbatch", folder / "slurm_script")
    environment = {
        **os.environ,
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_CPUS_ON_NODE": "6",
        "SLURM_SUBMIT_DIR": str(folder),
        "FAKE_STATE": "RUNNING",
        **variables,
    }
    return ["bash", str(script), *map(str, command)], environment


def run_job(folder: Path, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    call, environment = sbatch(folder, *command, **variables)
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=60)


def requeued() -> bool:
    return Path("scontrol.log").exists() and "requeue 77" in Path("scontrol.log").read_text()


def test_slurm_starts_one_task_a_gpu_that_sees_all_gpus(fakes: Path) -> None:
    Path("out").mkdir()
    done = run_job(fakes, "python", "-c", REPORT, "out", *AWKWARD)
    assert done.returncode == 0, done.stderr
    seen = reports(Path("out"))
    assert [report["arguments"] for report in seen] == [AWKWARD] * 2
    assert [report["environment"]["SLURM_PROCID"] for report in seen] == ["0", "1"]
    options = json.loads(Path("srun.json").read_text())[0]
    assert options["gpu-bind"] == "none"
    assert "gpus-per-task" not in options
    assert (options["nodes"], options["ntasks"], options["cpus-per-task"]) == ("2", "2", "6")
    assert Path("logs/slurm-77/process-0001.log").read_text() == "reported\n"
    assert not requeued()


def test_slurm_drops_what_an_outer_job_left_behind(fakes: Path) -> None:
    inherited = {
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_MEM_PER_CPU": "4096",
        "SLURM_GPUS_PER_TASK": "1",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "elsewhere",
        "SLURM_NTASKS": "64",
    }
    assert run_job(fakes, "true", **inherited).returncode == 0
    environment = json.loads(Path("srun.json").read_text())[1]
    assert not inherited.keys() & environment.keys()
    assert environment["SLURM_JOB_ID"] == "77"
    assert environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9"


@pytest.mark.parametrize(
    ("ends_with", "state", "failures", "status", "again"),
    [
        (3, "RUNNING", 0, 0, True),
        (3, "RUNNING", 9, 0, True),
        (3, "RUNNING", 10, 3, False),
        (3, "CANCELLED", 0, 3, False),
        (exit_codes.SAVED, "RUNNING", 10, 0, True),
        (exit_codes.SAVED, "CANCELLED", 0, exit_codes.SAVED, False),
        (exit_codes.BAD_NUMBERS, "RUNNING", 0, exit_codes.BAD_NUMBERS, False),
        (exit_codes.HARDWARE_FAULT, "RUNNING", 0, 0, True),
    ],
)
def test_slurm_queues_a_job_again(
    fakes: Path, ends_with: int, state: str, failures: int, status: int, again: bool
) -> None:
    count = Path("logs/slurm-77/failures")
    count.parent.mkdir(parents=True)
    count.write_text(f"{failures}\n")
    done = run_job(fakes, "bash", "-c", f"exit {ends_with}", FAKE_STATE=state)
    assert (done.returncode, requeued()) == (status, again)
    if ends_with == exit_codes.SAVED and again:
        assert not count.exists()
    elif again:
        assert count.read_text() == f"{failures + 1}\n"


@pytest.mark.parametrize(
    ("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)], ids=["time", "scancel"]
)
def test_slurm_before_the_time_limit_and_cancelled(fakes: Path, number: int, again: bool) -> None:
    call, environment = sbatch(fakes, "python", "-c", ONE_ENDS, fakes, -1, "hears")
    job = subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(started(fakes)) == 2)
    job.send_signal(number)
    assert (job.wait(20) == 0) == again
    assert requeued() == again
    assert all_gone(started(fakes))


def test_slurm_asks_for_what_it_relies_on() -> None:
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {"--requeue", "--signal=B:USR1@300", "--open-mode=append"} <= options
    assert {"--ntasks-per-node=8", "--gpus-per-node=8"} <= options


def test_slurm_refuses_a_wrong_call(fakes: Path) -> None:
    assert "error: no command" in run_job(fakes).stderr
    call, environment = sbatch(fakes, "true", SLURM_SUBMIT_DIR="/nowhere")
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "submit from the repository's folder" in done.stderr
