"""Refuses object trees that would be unsafe to hash or to walk."""

import argparse
from typing import Any

from dongwu_jax.interop.torch_files.globals import Placeholder

_MOST_KEY_PARTS = 100
_MOST_KEY_BITS = 256
_MOST_LEVELS = 100
_MOST_VISITS = 50_000_000
_LEAST_ALLOWANCE = 1 << 16
_ALLOWANCE_PER_BYTE = 4
_CONTAINERS = (dict, list, tuple, argparse.Namespace)  # that may have children


class DamagedPickleError(Exception):
    """A pickle that does not make sense."""


class Allowance:
    """How much the calls of one pickle may copy, in characters, bytes and elements.

    A pickle can name a large object it has made in two bytes, and ask for a copy each time. What
    torch writes copies less than the pickle is long.
    """

    def __init__(self, num_bytes: int):
        """The allowance of a pickle of `num_bytes`."""
        self._left = _LEAST_ALLOWANCE + _ALLOWANCE_PER_BYTE * num_bytes

    def spend(self, *sources: Any) -> None:
        """Count what a call that copies all of `sources` would make, before it does.

        Raises:
            DamagedPickleError: the allowance is used up.
        """
        self._left -= sum(
            len(source)
            for source in sources
            if isinstance(source, str | bytes | list | tuple | dict | set | frozenset)
        )
        if self._left < 0:
            raise DamagedPickleError("it copies the same objects too often")


def require_key(key: Any) -> Any:
    """The key of a dict or member of a set, unless hashing it may take long or exhaust the stack.

    Raises:
        DamagedPickleError: it cannot be a key.
    """
    parts = [key]
    for part in parts:  # which grows by the elements of tuples
        if isinstance(part, tuple):
            parts.extend(part)
            if len(parts) > _MOST_KEY_PARTS:  # shared tuples count each time, as in hashing
                raise DamagedPickleError(f"a key has more than {_MOST_KEY_PARTS} parts")
        elif not isinstance(part, str | int | float | bytes | Placeholder | None):
            raise DamagedPickleError(f"a key is a {type(part).__name__}")
        elif isinstance(part, int) and part.bit_length() > _MOST_KEY_BITS:
            raise DamagedPickleError(f"a key is a number of more than {_MOST_KEY_BITS} bits")
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
        if id(node) in measures:
            pending.pop()
            continue
        children = _children(node)
        if id(node) in entered:
            measures[id(node)] = _measure(children, measures)
            pending.pop()
        else:
            entered.add(id(node))
            unmeasured = [child for child in children if id(child) not in measures]
            if any(id(child) in entered for child in unmeasured):
                raise DamagedPickleError("an object holds itself")
            pending.extend(child for child in unmeasured if isinstance(child, _CONTAINERS))


def _measure(children: list[Any], measures: dict[int, tuple[int, int]]) -> tuple[int, int]:
    known = [measures.get(id(child), (0, 1)) for child in children]
    levels = 1 + max((levels for levels, _ in known), default=0)
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
