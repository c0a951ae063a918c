"""The processes of a run, as one of them sees them."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from dongwu_jax.parallel.switchboard import Switchboard


def _this_host() -> dict[int, str]:
    return {0: socket.gethostname()}


@dataclass(frozen=True)
class Peers:
    """This process, and how it reaches the others; as it stands: it is alone.

    Attributes:
        hosts: name of each process's host.
    """

    process_id: int = 0
    hosts: Mapping[int, str] = field(default_factory=_this_host)
    switchboard: Switchboard = field(default_factory=Switchboard)

    def name(self, process: int) -> str:
        """How a process is called in messages."""
        return f"process {process} ({self.hosts[process]})"
