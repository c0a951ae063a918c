"""The kernels of some profiled steps, as rows."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeFloat, PositiveFloat, ValidationError

from dongwu_jax.errors import UserError
from dongwu_jax.report import readable

Record = dict[str, Any]

_LISTED = 25


class KernelTable(BaseModel):
    """What `--profile-steps` leaves; times in milliseconds a step, `kernels` with calls a step."""

    first_step: int
    last_step: int
    total_ms: PositiveFloat
    elapsed_ms: PositiveFloat
    idle_ms: NonNegativeFloat
    exchanging_ms: NonNegativeFloat
    exposed_ms: NonNegativeFloat
    purposes: list[tuple[str, float]]
    kernels: list[tuple[str, float, float]]
    kernels_in_all: int


def read_kernel_table(path: Path) -> KernelTable | None:
    """The table at `path`; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        return KernelTable.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise UserError(f"{path}: is no table of kernels; remove it, or profile again") from None


def profile_tables(table: KernelTable | None) -> Record | None:
    """Rows by purpose and by kernel; None if nothing was profiled."""
    if table is None:
        return None
    lead = (
        f"Steps {table.first_step:,} to {table.last_step:,}, first GPU, milliseconds a step: "
        f"{table.elapsed_ms:,.1f} passed, of which the GPU did nothing for {table.idle_ms:,.1f}."
    )
    if table.exchanging_ms > 0:
        lead += (
            f" Exchanges between GPUs took {table.exchanging_ms:,.1f}, with nothing beside them "
            f"for {table.exposed_ms:,.1f}."
        )
    rest = table.kernels_in_all - min(len(table.kernels), _LISTED)
    if rest > 0:
        lead += f" {rest} more kernels are not listed."
    return {
        "lead": lead,
        "purposes": [_row(name, spent, table.total_ms) for name, spent in table.purposes],
        "kernels": [
            _row(name, spent, table.total_ms) | {"calls": readable.figure(calls)}
            for name, spent, calls in table.kernels[:_LISTED]
        ],
    }


def _row(name: str, milliseconds: float, total: float) -> Record:
    share = readable.share(milliseconds / total)
    return {"name": name, "milliseconds": f"{milliseconds:,.2f}", "share": share}
