"""Whether all that a resume needs can be read from a step, where no checksums tell.

A loss of power before the files are on the disk leaves them empty, cut short or full of zeros, and
the step without checksums: that is the last thing to be written.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object
from dongwu_jax.training.checkpoints.folders import METADATA
from dongwu_jax.training.checkpoints.streamed_weights import ArrayReader

_OF_A_RUN = ("optimizer", "data")  # not kept where weights alone are
_ARRAYS = ("parameters", "optimizer")
_ORBAX_INDEX = "_METADATA"  # the names of all arrays of an item


def problems_in_contents(step: Path, share: tuple[int, int]) -> list[str]:
    """What a resume could not make sense of in this process's share of a step.

    Args:
        share: number of the process, and how many share the arrays.

    Raises:
        OSError: the step cannot be looked into.
    """
    present = os.listdir(step)
    needed = ["config", "parameters"]
    if {*_OF_A_RUN} & {*present, *_items_written(step)}:  # else no run goes on from it
        needed += _OF_A_RUN
    problems = [f"{item} is missing" for item in needed if item not in present]
    if "config" in present:
        problems += _json_problems(step, "config/metadata")
    if "data" in present:
        problems += _json_problems(step, "data/metadata", "fingerprint")
    for item in (item for item in _ARRAYS if item in present):
        try:
            problems += [f"{item}/{problem}" for problem in _array_problems(step / item, share)]
        except (UserError, ValueError, OSError) as error:
            problems.append(f"{item} cannot be read: {_first_line(error)}")
    return problems


def _items_written(step: Path) -> list[str]:
    """The items that Orbax says it wrote."""
    try:
        return list(read_json_object(step / METADATA)["item_handlers"])
    except (UserError, KeyError, TypeError):
        return []  # a resume does without


def _json_problems(step: Path, name: str, *fields: str) -> list[str]:
    try:
        found = read_json_object(step / name)
    except UserError as error:
        return [str(error)]
    return [f"{name} has no {field}" for field in fields if field not in found]


def _array_problems(folder: Path, share: tuple[int, int]) -> Iterator[str]:
    """Arrays that are missing or cannot be read, of those that Orbax says it wrote."""
    for file in sorted(folder.glob("array_metadatas/*")):
        read_json_object(file)
    expected = _names(folder / _ORBAX_INDEX)
    reader = ArrayReader(folder)
    found = {*reader.describe()}
    yield from (f"{name} is missing" for name in sorted(expected - found))
    yield from (f"{name} is not known to {_ORBAX_INDEX}" for name in sorted(found - expected))
    for name in sorted(expected & found)[share[0] :: share[1]]:
        try:
            reader.read(name)
        except (ValueError, OSError) as error:
            yield f"{name} cannot be read: {_first_line(error)}"


def _names(index: Path) -> set[str]:
    try:
        return {
            ".".join(str(key["key"]) for key in entry["key_metadata"])
            for entry in read_json_object(index)["tree_metadata"].values()
            if not entry["value_metadata"]["skip_deserialize"]  # nothing is stored for it
        }
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: holds something else than the names of arrays") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
