"""Whether a run that finds no good checkpoint may begin at its first step."""

import functools
from pathlib import Path

import jax

from dongwu_jax.errors import UserError
from dongwu_jax.parallel.joint_decisions import all_succeed
from dongwu_jax.training.records.run_records import read_json_lines, record


def check_may_begin(directory: Path, events: Path) -> None:
    """Refuse to do again without a word what a run had saved; a collective operation.

    Args:
        directory: of the checkpoints; it holds no good one.
        events: events.jsonl of the run.

    Raises:
        UserError: there are damaged ones, or there was one that is not there any more.
    """
    all_succeed(functools.partial(_check, directory, events))


def _check(directory: Path, events: Path) -> None:
    if jax.process_index() > 0:
        return
    damaged = sorted(path.name for path in directory.glob("*.damaged*"))
    if damaged:
        raise UserError(
            f"{directory}: no good checkpoint is left, only {', '.join(damaged)}; mend one and "
            "give it back its number, or move them away to start anew"
        )
    saved = _last_saved(events, directory)
    if saved is not None:
        raise UserError(
            f"checkpoint.directory={directory}: holds no checkpoint, but {events} says that step "
            f"{saved} was saved there. Is the folder mounted? Give it back, or name the place "
            "where it is now; to begin anew on purpose, set another logging.directory or move "
            "events.jsonl away"
        )


def _last_saved(events: Path, directory: Path) -> int | None:
    """The last checkpoint that became complete in a folder; None: there was none."""
    saved, here = None, False
    for event in read_json_lines(events):
        kind, step = event.get("event"), event.get("step")
        if kind == "start":
            settings = record(record(event.get("config")).get("checkpoint"))
            here = Path(str(settings.get("directory"))).absolute() == directory.absolute()
        complete = (
            kind == "checkpoint"
            or (kind == "start" and event.get("resumed") is True)
            or (kind == "end" and event.get("reason") in ("finished", "stopped"))
        )
        if here and complete and isinstance(step, int):
            saved = step
    return saved
