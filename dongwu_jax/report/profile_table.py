"""The kernels of some profiled steps, as rows."""

from typing import Any

from dongwu_jax.report import figures
from dongwu_jax.report.json_lines import number

Record = dict[str, Any]

_LISTED = 25


def profile_tables(profile: Record | None) -> Record | None:
    """Rows by purpose and by kernel of what `--profile-steps` left; None if nothing is there."""
    if profile is None:
        return None
    total = number(profile.get("total_ms"), 0)
    kernels = [row for row in profile.get("kernels") or [] if len(row) == 3]
    rest = int(number(profile.get("kernels_in_all"), len(kernels))) - min(len(kernels), _LISTED)
    lead = (
        f"Steps {profile.get('first_step')} to {profile.get('last_step')}, first GPU, milliseconds "
        f"a step: {number(profile.get('elapsed_ms'), 0):,.1f} passed, of which the GPU did nothing "
        f"for {number(profile.get('idle_ms'), 0):,.1f}."
    )
    if number(profile.get("exchanging_ms"), 0) > 0:
        lead += (
            f" Exchanges between GPUs took {number(profile.get('exchanging_ms'), 0):,.1f}, with "
            f"nothing beside them for {number(profile.get('exposed_ms'), 0):,.1f}."
        )
    if rest > 0:
        lead += f" {rest} more kernels are not listed."
    return {
        "lead": lead,
        "purposes": [
            _row(str(name), spent, total) for name, spent in profile.get("purposes") or []
        ],
        "kernels": [
            _row(str(name), spent, total) | {"calls": figures.figure(number(calls, 0))}
            for name, spent, calls in kernels[:_LISTED]
        ],
    }


def _row(name: str, milliseconds: Any, total: float) -> Record:
    spent = number(milliseconds, 0)
    share = figures.share(spent / total if total else None)
    return {"name": name, "milliseconds": f"{spent:,.2f}", "share": share}
