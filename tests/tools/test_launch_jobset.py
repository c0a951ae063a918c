"""jobset.yaml: what Kubernetes is told, and the command of a pod, run for real."""

from pathlib import Path

import pytest
import yaml
from launchers import AWKWARD, LAUNCH, REPORT, REPOSITORY, finish, reports

from dongwu_jax import exit_codes
from dongwu_jax.config import load_config


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
