"""How long the steps of each host took, where it was recorded."""

from collections.abc import Sequence
from typing import Any

from dongwu_jax.report.sessions import Session


def hosts_table(sessions: Sequence[Session]) -> dict[str, Any] | None:
    """Heads and rows of a table; None if nothing was recorded."""
    return None
