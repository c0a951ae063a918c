"""Who is here: the processes of a run find each other before JAX connects them.

JAX itself ends every process with a stack trace when one does not come, and does not say which.
So each process first connects to process 0, on the port that JAX uses afterwards. The connections
stay open: `lifelines` learns from them when a process ends.
"""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dongwu_jax.errors import UserError
from dongwu_jax.parallel.cluster_detection import Cluster, reaches_only_this_host

_GREETING = "dongwu_jax"
_LONGEST_MESSAGE = 1 << 20
_SECONDS_BETWEEN_ATTEMPTS = 0.2
# A host that answers nothing any more is given up after 10 + 4 x 5 seconds.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


@dataclass
class Connection:
    """A line to another process, which carries one JSON object per line of text."""

    socket: socket.socket
    unread: bytes = b""

    def __post_init__(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):  # not everywhere
                self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send, or leave it where the other end is gone: whoever reads will find out."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def closed(self) -> bool:
        """Whether the other end is gone, as far as can be seen without waiting."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come since; waits for the first bytes.

        Raises:
            ConnectionError: the other end is gone, or sends something else.
        """
        try:
            received = self.socket.recv(1 << 16)
        except TimeoutError:
            raise ConnectionError("its host does not answer") from None
        except OSError as error:
            raise ConnectionError(error.strerror or str(error)) from None
        if not received:
            raise ConnectionError("its connection closed")
        *lines, self.unread = (self.unread + received).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            raise ConnectionError("it does not speak this protocol") from None
        if len(self.unread) > _LONGEST_MESSAGE or not all(isinstance(m, dict) for m in messages):
            raise ConnectionError("it does not speak this protocol")
        return messages


@dataclass
class Attendance:
    """The processes that are here.

    Attributes:
        hosts: name of each process's host.
        connections: process 0 has one to each other process, the others one to process 0.
    """

    hosts: dict[int, str]
    connections: dict[int, Connection] = field(default_factory=dict)


def call_roll(cluster: Cluster, timeout_seconds: float) -> Attendance:
    """Wait until all processes of the run are here.

    Raises:
        UserError: some have not come in time, naming them; or two have the same number.
    """
    if cluster.process_id == 0:
        return _gather(cluster, timeout_seconds)
    return _attend(cluster, timeout_seconds)


def _gather(cluster: Cluster, timeout_seconds: float) -> Attendance:
    """Process 0: let everyone connect, then tell them who is here."""
    here = Attendance({0: socket.gethostname()})
    listener = _listen(cluster)
    with listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        deadline = time.monotonic() + timeout_seconds
        try:
            while len(here.hosts) < cluster.num_processes:
                for key, _ in selector.select(max(deadline - time.monotonic(), 0)):
                    if key.fileobj is listener:
                        accepted = Connection(listener.accept()[0])
                        selector.register(accepted.socket, selectors.EVENT_READ, accepted)
                    else:
                        _greet(key.data, here, cluster, selector)
                if time.monotonic() >= deadline and len(here.hosts) < cluster.num_processes:
                    raise UserError(_missing(cluster, here, timeout_seconds))
        except UserError as error:
            for connection in here.connections.values():
                connection.send({"refused": str(error)})
            raise
    for connection in here.connections.values():
        connection.send({"hosts": [here.hosts[rank] for rank in range(cluster.num_processes)]})
    return here


def _listen(cluster: Cluster) -> socket.socket:
    port = cluster.coordinator[1]
    dual = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
            backlog=cluster.num_processes,
        )
    except OSError as error:
        raise UserError(
            f"coordinator address {cluster.coordinator_address}: process 0 cannot listen on port "
            f"{port} of {socket.gethostname()}: {error.strerror}; end what uses it, or choose "
            "another port"
        ) from None


def _greet(
    connection: Connection,
    here: Attendance,
    cluster: Cluster,
    selector: selectors.BaseSelector,
) -> None:
    """Take in the greeting of one connection; drop what is no process of ours.

    Raises:
        UserError: the process cannot be one of this run.
    """
    try:
        messages = connection.receive()
    except ConnectionError:
        selector.unregister(connection.socket)
        connection.socket.close()
        gone = [rank for rank, line in here.connections.items() if line is connection]
        for rank in gone:  # it may come again
            del here.connections[rank], here.hosts[rank]
        return
    for message in messages:
        if not _is_greeting(message):
            continue
        refusal = _refusal(message, here, cluster)
        if refusal is not None:
            connection.send({"refused": refusal})
            raise UserError(refusal)
        rank = message["process"]
        here.hosts[rank], here.connections[rank] = message["host"], connection


def _is_greeting(message: Mapping[str, Any]) -> bool:
    """Whether a message is what `_attend` sends, of a process that its own run can have."""
    rank, host, processes = (message.get(name) for name in ("process", "host", "processes"))
    return (
        message.get("greeting") == _GREETING
        and type(rank) is int  # not bool
        and type(processes) is int
        and 0 < rank < processes
        and isinstance(host, str)
        and 0 < len(host) < 256
        and host.isprintable()
    )


def _refusal(greeting: Mapping[str, Any], here: Attendance, cluster: Cluster) -> str | None:
    """Why a process cannot be one of this run, if so."""
    rank, host, processes = (greeting[name] for name in ("process", "host", "processes"))
    if processes != cluster.num_processes:
        return (
            f"process {rank} on {host} was told of {processes} processes, process 0 on "
            f"{here.hosts[0]} of {cluster.num_processes}; start all with the same number"
        )
    if rank in here.hosts:
        return (
            f"two processes say they are process {rank}, on {here.hosts[rank]} and on {host}; "
            "give each process its own number"
        )
    return None


def _missing(cluster: Cluster, here: Attendance, timeout_seconds: float) -> str:
    missing = [rank for rank in range(cluster.num_processes) if rank not in here.hosts]
    text = (
        f"{_numbers(missing)} of {cluster.num_processes} did not come within "
        f"{timeout_seconds:g} s to {cluster.coordinator_address}; here are "
        f"{describe_hosts(here.hosts)}. Look at the logs of those that are missing, or raise "
        "--initialization-timeout"
    )
    if reaches_only_this_host(cluster.coordinator[0]):
        text += (
            f". {cluster.coordinator[0]} is a loopback address: processes on other hosts cannot "
            "reach it"
        )
    return text


def _attend(cluster: Cluster, timeout_seconds: float) -> Attendance:
    """Any other process: connect to process 0 and wait until everyone has."""
    deadline = time.monotonic() + timeout_seconds
    connection = Connection(_connect(cluster, deadline, timeout_seconds))
    connection.send(
        {
            "greeting": _GREETING,
            "process": cluster.process_id,
            "host": socket.gethostname(),
            "processes": cluster.num_processes,
        }
    )
    # Process 0 may have begun to wait a little later than this one.
    connection.socket.settimeout(timeout_seconds + 30)
    messages: list[dict[str, Any]] = []
    try:
        while not messages:
            messages = connection.receive()
    except ConnectionError as error:
        raise UserError(
            f"process 0 at {cluster.coordinator_address} is gone while the processes of the run "
            f"were gathering: {error}. Look at its log; if the run has started already, it has "
            f"another process {cluster.process_id}: give each process its own number"
        ) from None
    connection.socket.settimeout(None)
    if "refused" in messages[0]:
        raise UserError(str(messages[0]["refused"]))
    hosts = messages[0].get("hosts")
    if not isinstance(hosts, list) or len(hosts) != cluster.num_processes:
        raise UserError(
            f"what answers at {cluster.coordinator_address} is not process 0 of this run; look "
            "at the address"
        )
    return Attendance({rank: str(host) for rank, host in enumerate(hosts)}, {0: connection})


def _connect(cluster: Cluster, deadline: float, timeout_seconds: float) -> socket.socket:
    """Try until process 0 listens.

    Raises:
        UserError: it did not in time.
    """
    while True:
        try:
            line = socket.create_connection(cluster.coordinator, timeout=10)
            if line.getsockname() != line.getpeername():
                return line
            line.close()  # nobody listened, and the system joined the line to itself
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
                continue
            host = cluster.coordinator[0]
            loopback = (
                f" {host} is a loopback address: it leads to process 0 only on the same host."
                if reaches_only_this_host(host)
                else ""
            )
            raise UserError(
                f"process 0 did not answer at {cluster.coordinator_address} within "
                f"{timeout_seconds:g} s ({error.strerror or error}), which process "
                f"{cluster.process_id} on {socket.gethostname()} was told by "
                f"{cluster.source}.{loopback} Look at the log of process 0, at the address, and "
                "at the firewall"
            ) from None


def _numbers(ranks: Sequence[int]) -> str:
    """`process 3`, or `processes 1-4, 7`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ("process " if len(ranks) == 1 else "processes ") + ", ".join(texts)


def describe_hosts(hosts: Mapping[int, str]) -> str:
    """`processes 0-3 on a, processes 4-7 on b`."""
    on: dict[str, list[int]] = {}
    for rank, host in sorted(hosts.items()):
        on.setdefault(host, []).append(rank)
    return ", ".join(f"{_numbers(ranks)} on {host}" for host, ranks in on.items())
