"""Joining the processes of a multi-host run."""

import os

import jax

from dongwu_jax.errors import UserError


def initialize_distributed() -> None:
    """Join the other processes when a launcher started several; a single process needs nothing.

    Explicit variables win: JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. Otherwise Slurm is recognised when the job step has more than one task.

    Raises:
        UserError: some of the explicit variables are missing or not numbers.
    """
    coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator:
        jax.distributed.initialize(
            coordinator,
            num_processes=_number_from("JAX_NUM_PROCESSES"),
            process_id=_number_from("JAX_PROCESS_ID"),
        )
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        jax.distributed.initialize()


def _number_from(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isdigit():
        raise UserError(
            f"{variable}={text!r}: with JAX_COORDINATOR_ADDRESS set, it must be a number"
        )
    return int(text)
