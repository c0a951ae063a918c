"""Refuses object trees that would be unsafe to hash or to walk."""

import argparse
from typing import Any

from dongwu_jax.interop.torch_files.globals import Placeholder

_MOST_KEY_LEVELS = 4
_MOST_LEVELS = 100
_MOST_VISITS = 50_000_000


class DamagedPickleError(Exception):
    """A pickle that does not make sense."""


def require_key(key: Any, levels: int = _MOST_KEY_LEVELS) -> Any:
    """The key of a dict or member of a set, unless hashing it may exhaust the stack.

    Raises:
        DamagedPickleError: it cannot be a key.
    """
    if isinstance(key, tuple):
        if not levels:
            raise DamagedPickleError("a key is nested too deeply")
        for item in key:
            require_key(item, levels - 1)
    elif not isinstance(key, str | int | float | bytes | Placeholder | None):
        raise DamagedPickleError(f"a key is a {type(key).__name__}")
    return key


def require_walkable(tree: Any) -> None:
    """Check that a recursive walk of the tree ends, soon, and without exhausting the stack.

    A pickle may let a container hold itself, or hold one container many times at every level.

    Raises:
        DamagedPickleError: it does.
    """
    measures: dict[int, tuple[int, int]] = {}  # levels and visits of a walk, by id
    entered: set[int] = set()
    pending = [tree]
    while pending:
        node = pending[-1]
        children = _children(node)
        if id(node) in measures or not children:
            pending.pop()
        elif id(node) in entered:
            measures[id(node)] = _measure(children, measures)
            pending.pop()
        else:
            entered.add(id(node))
            unmeasured = [child for child in children if id(child) not in measures]
            if any(id(child) in entered for child in unmeasured):
                raise DamagedPickleError("an object holds itself")
            pending.extend(child for child in unmeasured if _children(child))


def _measure(children: list[Any], measures: dict[int, tuple[int, int]]) -> tuple[int, int]:
    known = [measures.get(id(child), (0, 1)) for child in children]
    levels = 1 + max(levels for levels, _ in known)
    visits = 1 + sum(visits for _, visits in known)
    if levels > _MOST_LEVELS or visits > _MOST_VISITS:
        raise DamagedPickleError(
            f"objects are nested in more than {_MOST_LEVELS} levels or repeated too often"
        )
    return levels, visits


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    if isinstance(node, list | tuple):
        return list(node)
    return list(vars(node).values()) if isinstance(node, argparse.Namespace) else []
