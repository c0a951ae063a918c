"""Which processes make up a run: from flags, the environment, Slurm, Kubernetes or MPI."""

import ipaddress
import logging
import re
import socket
from dataclasses import dataclass, replace

from dongwu_jax.errors import UserError
from dongwu_jax.parallel.launchers import (
    KUBERNETES,
    Environment,
    Launch,
    from_launcher,
    from_variables,
    local_device_ids,
    number,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cluster:
    """The place of this process among those of a run.

    Attributes:
        source: who said so, for people.
        coordinator_address: `host:port` of process 0.
        num_processes: processes of the run.
        process_id: number of this one.
        local_device_ids: GPUs of this process among those of its host; None: all it can see.
        num_hosts: hosts of the run; None: not known.
    """

    source: str
    coordinator_address: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None
    num_hosts: int | None = None

    @property
    def coordinator(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator_address.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)


def detect_cluster(
    environment: Environment,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Cluster | None:
    """The cluster this process belongs to; None: it is alone.

    What is given here wins over JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
    and these over what Slurm, Kubernetes (the index of an indexed job) or MPI say.

    Raises:
        UserError: the sources leave something open, or say what cannot be.
    """
    flags = Launch(("command line",), coordinator_address, num_processes, process_id)
    launch = _overlay(flags, from_variables(environment))
    if None in (launch.coordinator_address, launch.num_processes, launch.process_id):
        has_coordinator = launch.coordinator_address is not None
        launch = _overlay(launch, from_launcher(environment, has_coordinator))
    if launch.coordinator_address is None and launch.num_processes is None:
        if launch.process_id:
            raise UserError(_incomplete(launch))
        if (number(environment, "SLURM_NTASKS") or 1) > 1:
            logger.warning(
                "this process trains alone: Slurm's job has %s tasks, but srun did not start this "
                "process as one of them",
                environment["SLURM_NTASKS"],
            )
        return None
    if launch.num_processes == 1 and launch.process_id in (None, 0):
        return None
    if None in (launch.coordinator_address, launch.num_processes, launch.process_id):
        raise UserError(_incomplete(launch))
    assert launch.coordinator_address is not None
    assert launch.num_processes is not None
    assert launch.process_id is not None
    cluster = Cluster(
        " and ".join(launch.sources),
        launch.coordinator_address,
        launch.num_processes,
        launch.process_id,
        local_device_ids(environment) or launch.local_device_ids,
        _num_hosts(launch, environment),
    )
    _check(cluster)
    return cluster


def _num_hosts(launch: Launch, environment: Environment) -> int | None:
    """Hosts of the run; nobody but the launcher says how many there are."""
    if KUBERNETES in launch.sources:  # a pod for each process
        return launch.num_processes
    return launch.num_hosts or from_launcher(environment, has_coordinator=True).num_hosts


def _overlay(above: Launch, below: Launch) -> Launch:
    """`above`, completed by `below`, which is named where it gave something that counts."""
    names = ("coordinator_address", "num_processes", "process_id")
    taken = {
        name: getattr(below, name)
        for name in names
        if getattr(above, name) is None and getattr(below, name) is not None
    }
    given = any(getattr(above, name) is not None for name in names)
    if not given:
        return below
    if not taken:  # nothing of `below` counts then: it may be left over from another job
        return above
    return replace(
        above,
        sources=above.sources + below.sources,
        local_device_ids=below.local_device_ids,
        num_hosts=below.num_hosts,
        **taken,
    )


def _incomplete(launch: Launch) -> str:
    missing = [
        f"{flag} or {variable}"
        for value, flag, variable in (
            (launch.coordinator_address, "--coordinator-address", "JAX_COORDINATOR_ADDRESS"),
            (launch.num_processes, "--num-processes", "JAX_NUM_PROCESSES"),
            (launch.process_id, "--process-id", "JAX_PROCESS_ID"),
        )
        if value is None
    ]
    return (
        f"the run has several processes ({' and '.join(launch.sources)}), but nothing says "
        f"everything about them; give {', '.join(missing)} (the address is HOST:PORT of process 0)"
    )


def _check(cluster: Cluster) -> None:
    if not re.fullmatch(
        r"(\[[0-9a-fA-F:.%\w]+\]|[^\[\]:/\s]+):[0-9]{1,5}", cluster.coordinator_address
    ):
        raise UserError(
            f"coordinator address {cluster.coordinator_address!r} ({cluster.source}): write "
            "HOST:PORT of process 0, e.g. node1:12345 or [fd00::1]:12345"
        )
    host, port = cluster.coordinator
    if not 0 < port < 65536:
        raise UserError(
            f"coordinator address {cluster.coordinator_address!r}: no port has this number"
        )
    if not 0 <= cluster.process_id < cluster.num_processes:
        text = (
            f"process {cluster.process_id} of {cluster.num_processes} ({cluster.source}): the "
            f"processes are numbered from 0 to {cluster.num_processes - 1}"
        )
        if "Slurm" in cluster.source:
            text += (
                "; of a heterogeneous step Slurm counts the tasks of each component alone: give "
                "JAX_NUM_PROCESSES and JAX_COORDINATOR_ADDRESS"
            )
        raise UserError(text)
    several_hosts = cluster.num_hosts is not None and cluster.num_hosts > 1
    if several_hosts and reaches_only_this_host(host):
        raise UserError(
            f"coordinator address {cluster.coordinator_address}: {host} is a loopback address, "
            f"which the other hosts of the run ({cluster.num_hosts} in all) cannot reach; give the "
            "name or address of process 0's host in the network: --coordinator-address or "
            "JAX_COORDINATOR_ADDRESS"
        )


def reaches_only_this_host(host: str) -> bool:
    """Whether a name or address leads back to whoever uses it (127.x, ::1, localhost).

    This host's own name does not count: it often stands for 127.0.1.1 on the host itself and
    for its real address everywhere else.
    """
    own = socket.gethostname().split(".")[0]
    if own != "localhost" and host.split(".")[0] == own:
        return False
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False  # said by whoever tries to connect
    return any(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in addresses)
