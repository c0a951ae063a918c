"""Processes of the toolkit side by side, one on each GPU of CUDA_VISIBLE_DEVICES.

A GPU that is named several times (0,0,1,1) takes as many processes at a time; they share its memory
by XLA_PYTHON_CLIENT_MEM_FRACTION.
"""

import os
import queue
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from dongwu_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
Gpus = queue.Queue[str]
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


def visible_gpus() -> Gpus:
    """Those of CUDA_VISIBLE_DEVICES; the first one where it is not set."""
    gpus: Gpus = queue.Queue()
    for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(","):
        gpus.put(gpu)
    return gpus


def on_a_gpu(
    gpus: Gpus,
    work: Callable[Concatenate[str, Rest], Result],
    *arguments: Rest.args,
    **options: Rest.kwargs,
) -> Result:
    """Call `work` with a GPU that is free, waiting for one."""
    gpu = gpus.get()
    try:
        return work(gpu, *arguments, **options)
    finally:
        gpus.put(gpu)


def run(gpu: str, log: Path, *command: object) -> None:
    """Run Python with these arguments on a GPU, its output in `log`.

    Raises:
        UserError: it failed; the message has the end of its log.
    """
    words = [str(word) for word in command]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": path}
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, *words],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise UserError(f"{' '.join(words[:2])} failed, see {log}:\n{log.read_text()[-2000:]}")
