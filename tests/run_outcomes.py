"""What a run leaves in its folder, and whether two ended alike."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from json_lines import read_lines


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What the run of `runs.run_config(folder)` reported, in order."""
    return read_lines(folder / "run" / "metrics.jsonl")


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of a kind that such a run wrote down."""
    lines = read_lines(folder / "run" / "events.jsonl")
    return [event for event in lines if event["event"] == kind]


def assert_same_state(one: Any, other: Any) -> None:
    """Fail unless two trees of arrays are the same in every bit of a value."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))
