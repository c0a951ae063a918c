"""Which folders Orbax takes for steps: it counts the oldest among those that it may remove."""

import os
from collections.abc import Iterator
from pathlib import Path

import orbax.checkpoint as ocp

from dongwu_jax.training.checkpoints.folders import is_of_a_run

_STANDARD = ocp.path.step.standard_name_format()


class StepsOfARun(ocp.path.step.NameFormat[ocp.path.step.Metadata]):
    """Steps by their number, but no other folders that are named by one."""

    def build_name(self, step: int) -> str:
        """The number."""
        return _STANDARD.build_name(step)

    def find_all(self, base_path: os.PathLike[str] | str) -> Iterator[ocp.path.step.Metadata]:
        """The complete steps in a folder."""
        return (
            found for found in _STANDARD.find_all(base_path) if is_of_a_run(Path(str(found.path)))
        )

    def find_step(self, base_path: os.PathLike[str] | str, step: int) -> ocp.path.step.Metadata:
        """One of them."""
        return _STANDARD.find_step(base_path, step)
