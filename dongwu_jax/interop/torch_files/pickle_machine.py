"""Runs a pickle without being able to run anything else.

A pickle is a program. This interprets the instructions that build data; where one asks to call
something, it can only reach the functions of `rebuild`, or make an inert `Placeholder`.
The standard library's `pickletools` decodes the instructions, it runs none.
"""

import argparse
import pickletools
from collections.abc import Callable
from typing import Any

from dongwu_jax.errors import UserError
from dongwu_jax.interop.torch_files.globals import (
    MEMBER_OF_CLASS,
    Placeholder,
    find_global,
    may_have_members,
    modern_name,
)
from dongwu_jax.interop.torch_files.rebuild import REBUILD
from dongwu_jax.interop.torch_files.soundness import (
    Allowance,
    DamagedPickleError,
    require_key,
)
from dongwu_jax.interop.torch_files.stored_array import StoredArray

_IGNORED = ("PROTO", "FRAME")
_MAKE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
_TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_VALUES = _NUMBERS | _STRINGS | _TEXTS


class PickleMachine:
    """The state of one run."""

    def __init__(self, origin: str, load_storage: Callable[[Any], Any]):
        """Prepare a run.

        Args:
            origin: the file, for errors.
            load_storage: gives what a persistent id stands for.
        """
        self._origin = origin
        self._load_storage = load_storage
        self._stack: list[Any] = []
        self._outer_stacks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._allowance = Allowance(0)

    def run(self, data: bytes) -> Any:
        """The object that the pickle describes.

        Raises:
            UserError: it asks for a global that is not known.
            Exception: of any kind, when it is damaged.
        """
        self._allowance = Allowance(len(data))
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _MAKE:
                self._stack.append(_MAKE[name]())
            elif name == "STOP":
                break
            elif name not in _IGNORED:
                instruction = _INSTRUCTIONS.get(name)
                if instruction is None:
                    raise DamagedPickleError(f"instruction {name} is not one that torch uses")
                instruction(self, argument)
        if len(self._stack) != 1 or self._outer_stacks:
            raise DamagedPickleError("it leaves more or less than one object")
        return self._stack.pop()

    def _mark(self, argument: object) -> None:
        self._outer_stacks.append(self._stack)
        self._stack = []

    def _items(self) -> list[Any]:
        items, self._stack = self._stack, self._outer_stacks.pop()
        return items

    def _pop(self, argument: object) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._items()

    def _pop_mark(self, argument: object) -> None:
        self._items()

    def _duplicate(self, argument: object) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, argument: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _tuple(self, argument: object) -> None:
        items = self._items()
        self._stack.append(tuple(items))

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise DamagedPickleError("a tuple lacks elements")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _list(self, argument: object) -> None:
        items = self._items()
        self._stack.append(items)

    def _dict(self, argument: object) -> None:
        items = self._items()
        self._stack.append({})
        self._set(items)

    def _frozenset(self, argument: object) -> None:
        items = self._items()
        self._stack.append(frozenset(require_key(item) for item in items))

    def _append(self, argument: object) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, argument: object) -> None:
        self._extend(self._items())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Placeholder):  # nothing reads what an unknown class holds
            raise DamagedPickleError(f"it appends to a {type(target).__name__}")

    def _add_items(self, argument: object) -> None:
        items = self._items()
        target = self._stack[-1]
        if not isinstance(target, set):
            raise DamagedPickleError(f"it adds to a {type(target).__name__}")
        target.update(require_key(item) for item in items)

    def _set_item(self, argument: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_items(self, argument: object) -> None:
        self._set(self._items())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[require_key(key)] = value
        elif not isinstance(target, Placeholder):
            raise DamagedPickleError(f"it sets items of a {type(target).__name__}")

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._find_global(module, name))

    def _stack_global(self, argument: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise DamagedPickleError("the name of a global is not a text")
        self._stack.append(self._find_global(module, name))

    def _find_global(self, module: str, name: str) -> Placeholder:
        module, name = modern_name(module, name)
        found = find_global(module, name)
        if found is None:
            raise self._refusal(f"{module}.{name}")
        return found

    def _refusal(self, name: str) -> UserError:
        return UserError(
            f"{self._origin}: asks for the global {name[:200]!r}, which no "
            "checkpoint needs; refused, nothing was executed. Use this file only if you trust "
            "where it comes from, and save it again without that object"
        )

    def _reduce(self, argument: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, arguments))

    def _new_object_with_keywords(self, argument: object) -> None:
        if self._stack.pop():
            raise DamagedPickleError("it makes an object from keyword arguments")
        self._reduce(argument)

    def _instance(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        function = self._find_global(module, name)
        items = self._items()
        self._stack.append(self._call(function, tuple(items)))

    def _object(self, argument: object) -> None:
        function, *items = self._items()
        self._stack.append(self._call(function, tuple(items)))

    def _build(self, argument: object) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Placeholder):
            target.state = state
        elif isinstance(target, argparse.Namespace):
            if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
                raise DamagedPickleError("the fields of a Namespace are not named values")
            self._allowance.spend(state)
            vars(target).update(state)
        elif not isinstance(target, dict | StoredArray):  # whose attributes nothing reads
            raise DamagedPickleError(f"it sets attributes of a {type(target).__name__}")

    def _persistent(self, argument: object) -> None:
        self._stack.append(self._load_storage(self._stack.pop()))

    def _call(self, function: object, arguments: object) -> Any:
        if not isinstance(function, Placeholder) or not isinstance(arguments, tuple):
            raise DamagedPickleError(f"it calls a {type(function).__name__}")
        if function.name == MEMBER_OF_CLASS:
            return self._member(*arguments)
        rebuild = REBUILD.get(function.name)
        if rebuild is None:
            return Placeholder(function.name, arguments)
        self._allowance.spend(arguments, *arguments)
        return rebuild(*arguments)

    def _member(self, owner: object = None, name: object = None, *others: object) -> Placeholder:
        """A member of an enum by its name; nothing else may be got from anything."""
        named = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
        if isinstance(owner, Placeholder) and may_have_members(owner.name) and named and not others:
            return Placeholder(owner.name, (name,))
        raise self._refusal(MEMBER_OF_CLASS)


_INSTRUCTIONS: dict[str, Callable[[PickleMachine, Any], None]] = {
    "MARK": PickleMachine._mark,
    "POP": PickleMachine._pop,
    "POP_MARK": PickleMachine._pop_mark,
    "DUP": PickleMachine._duplicate,
    "PUT": PickleMachine._put,
    "BINPUT": PickleMachine._put,
    "LONG_BINPUT": PickleMachine._put,
    "MEMOIZE": PickleMachine._memoize,
    "GET": PickleMachine._get,
    "BINGET": PickleMachine._get,
    "LONG_BINGET": PickleMachine._get,
    "TUPLE": PickleMachine._tuple,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "LIST": PickleMachine._list,
    "DICT": PickleMachine._dict,
    "FROZENSET": PickleMachine._frozenset,
    "APPEND": PickleMachine._append,
    "APPENDS": PickleMachine._appends,
    "ADDITEMS": PickleMachine._add_items,
    "SETITEM": PickleMachine._set_item,
    "SETITEMS": PickleMachine._set_items,
    "GLOBAL": PickleMachine._global,
    "STACK_GLOBAL": PickleMachine._stack_global,
    "REDUCE": PickleMachine._reduce,
    "NEWOBJ": PickleMachine._reduce,
    "NEWOBJ_EX": PickleMachine._new_object_with_keywords,
    "INST": PickleMachine._instance,
    "OBJ": PickleMachine._object,
    "BUILD": PickleMachine._build,
    "BINPERSID": PickleMachine._persistent,
}
