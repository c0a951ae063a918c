"""What flags, variables and launchers (Slurm, Kubernetes, MPI) say about the processes of a run."""

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from dongwu_jax.errors import UserError

Environment = Mapping[str, str]

# Ports above the range that Linux hands out by itself, as jax.distributed chooses them.
_FIRST_PORT, _PORTS = 61440, 4096

KUBERNETES = "the index of a Kubernetes job"


@dataclass(frozen=True)
class Launch:
    """What a source says; None where it does not."""

    sources: tuple[str, ...] = ()
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] | None = None
    num_hosts: int | None = None


def from_variables(environment: Environment) -> Launch:
    """What JAX's own variables say.

    Raises:
        UserError: one of them is no number.
    """
    return Launch(
        ("JAX_* variables",),
        environment.get("JAX_COORDINATOR_ADDRESS") or None,
        number(environment, "JAX_NUM_PROCESSES", least=1),
        number(environment, "JAX_PROCESS_ID"),
    )


def from_launcher(environment: Environment, has_coordinator: bool) -> Launch:
    """What the launcher says that started this process as one of several.

    Kubernetes numbers the pods of any indexed job: it is a run's where a coordinator is named.
    """
    # SLURM_NTASKS is also there in a batch script, which is one process; the step's count is not.
    if (number(environment, "SLURM_STEP_NUM_TASKS") or 1) > 1:
        return _from_slurm(environment)
    if (number(environment, "OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return _from_mpi(environment, "Open MPI", "OMPI_COMM_WORLD_")
    if (number(environment, "PMI_SIZE") or 1) > 1:
        return _from_mpi(environment, "MPI", "PMI_")
    if "JOB_COMPLETION_INDEX" in environment and has_coordinator:
        index = number(environment, "JOB_COMPLETION_INDEX")
        return Launch((KUBERNETES,), process_id=index)
    return Launch()


def _from_slurm(environment: Environment) -> Launch:
    """A task of a Slurm step; process 0 runs on the first host of its list."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    first = re.match(r"(?:[^,\[\]]|\[[^\[\]]+\])+", nodes)  # node07,... or rack[1-2]n[07-12]x,...
    job, step = number(environment, "SLURM_JOB_ID"), number(environment, "SLURM_STEP_ID")
    address = None
    if first is not None:
        port = _FIRST_PORT + ((job or 0) + (step or 0)) % _PORTS
        host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group())
        address = f"{host}:{port}"
    process, local = number(environment, "SLURM_PROCID"), number(environment, "SLURM_LOCALID")
    each_host = _tasks_per_host(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = number(environment, "SLURM_NODEID") or 0
    devices = None
    if local is not None and node < len(each_host) and "SLURM_GPUS_PER_TASK" not in environment:
        devices = _share_of_devices(environment, local, each_host[node])
    return Launch(
        ("Slurm",),
        address,
        number(environment, "SLURM_STEP_NUM_TASKS"),
        process,
        devices,
        number(environment, "SLURM_STEP_NUM_NODES"),
    )


def _tasks_per_host(text: str) -> list[int]:
    """Slurm's `8(x2),4` as [8, 8, 4]."""
    counts = []
    for count, repeats in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeats or 1)
    return counts


def _from_mpi(environment: Environment, source: str, prefix: str) -> Launch:
    """A rank of Open MPI, or of a launcher in the manner of MPICH."""
    size, rank = number(environment, prefix + "SIZE"), number(environment, prefix + "RANK")
    names = ("OMPI_COMM_WORLD_LOCAL_", "RANK", "SIZE")
    if prefix == "PMI_":
        names = ("MPI_LOCAL", "RANKID", "NRANKS")
    local = number(environment, names[0] + names[1])
    local_size = number(environment, names[0] + names[2])
    devices = None
    if local is not None and local_size is not None:
        devices = _share_of_devices(environment, local, local_size)
    num_hosts = None
    if local_size and size:
        num_hosts = math.ceil(size / local_size)
    address = _mpi_coordinator(environment, one_host=num_hosts == 1)
    return Launch((source,), address, size, rank, devices, num_hosts)


def _mpi_coordinator(environment: Environment, one_host: bool) -> str | None:
    """Where rank 0 listens: on this host, or on that of mpirun as Open MPI 4 names it."""
    job = environment.get("OMPI_MCA_orte_hnp_uri") or environment.get("PMIX_NAMESPACE") or ""
    port = _FIRST_PORT + zlib.crc32(job.encode()) % _PORTS
    if one_host and job:
        return f"localhost:{port}"
    launcher = re.search(r"tcp://([^,:]+)", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    return f"{launcher.group(1)}:{port}" if launcher else None


def _share_of_devices(
    environment: Environment, local_rank: int, local_size: int
) -> tuple[int, ...] | None:
    """The GPUs of one of `local_size` processes on a host; None: all that it can see.

    A process that is alone on its host has them all, and so has one whose launcher shows it
    fewer GPUs than there are processes. Otherwise those that are shown are shared out evenly, or
    one to each process where nothing says how many there are.
    """
    if local_size == 1:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return (local_rank,)
    each = len(visible.split(",")) // local_size
    if each == 0:
        return None
    return tuple(range(local_rank * each, (local_rank + 1) * each))


def local_device_ids(environment: Environment) -> tuple[int, ...] | None:
    """The GPUs of this process on its host, from JAX_LOCAL_DEVICE_IDS; None: it does not say.

    Raises:
        UserError: the variable is no list of numbers.
    """
    text = environment.get("JAX_LOCAL_DEVICE_IDS", "")
    if not text:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(
            f"JAX_LOCAL_DEVICE_IDS={text!r}: must be numbers of GPUs with commas between them"
        )
    return tuple(int(part) for part in text.split(","))


def number(environment: Environment, variable: str, least: int = 0) -> int | None:
    """A variable that is a whole number; None: it is not set.

    Raises:
        UserError: it is something else, or below `least`.
    """
    text = environment.get(variable, "")
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) < least:
        raise UserError(f"{variable}={text!r}: must be a whole number of at least {least}")
    return int(text)
