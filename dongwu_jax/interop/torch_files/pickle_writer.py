"""Writes protocol-2 pickles of plain trees, naming classes that need not be installed here."""

import argparse
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from dongwu_jax.interop.torch_files.stored_array import STORAGE_DTYPES

# The instructions of protocol 2 that are written; the standard library's pickletools explains them.
_PROTOCOL, _STOP, _MARK = b"\x80\x02", b".", b"("
_NONE, _TRUE, _FALSE = b"N", b"\x88", b"\x89"
_BYTE_INTEGER, _SHORT_INTEGER, _INTEGER, _LONG = b"K", b"M", b"J", b"\x8a"
_FLOAT, _TEXT = b"G", b"X"
_EMPTY_TUPLE, _TUPLE, _TUPLES = b")", b"t", (b"", b"\x85", b"\x86", b"\x87")
_EMPTY_LIST, _APPENDS, _EMPTY_DICT, _SET_ITEMS = b"]", b"e", b"}", b"u"
_GLOBAL, _REDUCE, _NEW_OBJECT, _BUILD, _PERSISTENT_ID = b"c", b"R", b"\x81", b"b", b"Q"

_MOST_INTEGER_BYTES = 255  # of an integer that torch.load(weights_only=True) takes
_STORAGE_NAMES = {
    dtype: name.removeprefix("torch.")
    for name, dtype in STORAGE_DTYPES.items()
    if not name.endswith("UntypedStorage")
}


@dataclass(frozen=True)
class PendingTensor:
    """A leaf of a tree: a tensor whose values come later."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class GlobalName:
    """A leaf of a tree: a class, function or dtype by name, e.g. ("torch", "bfloat16")."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class Instance:
    """A leaf of a tree: an object of a class.

    With arguments, or without a state, the class is called. With a state alone the object is made
    without calling its initializer, which is how dataclasses are pickled.
    """

    cls: GlobalName
    arguments: tuple[Any, ...] = ()
    state: Any = None


def dump_pickle(tree: Any) -> bytes:
    """The pickle of a tree without tensors.

    The tree consists of dict, OrderedDict, list, tuple, str, int, float, bool, None, bytes,
    argparse.Namespace, `GlobalName` and `Instance`.

    Raises:
        TypeError: the tree holds anything else.
    """
    data, pending = dump_tensors(tree)
    if pending:
        raise TypeError(f"a bare pickle cannot hold the tensor {pending[0]}")
    return data


def dump_tensors(tree: Any) -> tuple[bytes, list[PendingTensor]]:
    """The pickle of a torch file, and its tensors in the order of their storages' keys.

    Raises:
        TypeError: the tree holds what cannot be written.
    """
    emitter = _Emitter()
    emitter.emit(tree)
    return b"".join([_PROTOCOL, *emitter.parts, _STOP]), emitter.pending


class _Emitter:
    """Collects the instructions that build a tree."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.pending: list[PendingTensor] = []

    def emit(self, value: Any) -> None:
        """Add the instructions that push a value."""
        kind = _KINDS.get(type(value))
        if kind is None:
            raise TypeError(f"a {type(value).__name__} cannot be written into a torch file")
        kind(self, value)

    def _none(self, value: None) -> None:
        self.parts.append(_NONE)

    def _bool(self, value: bool) -> None:
        self.parts.append(_TRUE if value else _FALSE)

    def _int(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.parts.append(_BYTE_INTEGER + struct.pack("<B", value))
        elif 0 <= value < 1 << 16:
            self.parts.append(_SHORT_INTEGER + struct.pack("<H", value))
        elif -(1 << 31) <= value < 1 << 31:
            self.parts.append(_INTEGER + struct.pack("<i", value))
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            if len(data) > _MOST_INTEGER_BYTES:
                raise TypeError(f"an integer of {len(data)} bytes cannot be written")
            self.parts += [_LONG, struct.pack("<B", len(data)), data]

    def _float(self, value: float) -> None:
        self.parts.append(_FLOAT + struct.pack(">d", value))

    def _str(self, value: str) -> None:
        data = value.encode("utf-8", "surrogatepass")
        self.parts += [_TEXT, struct.pack("<I", len(data)), data]

    def _bytes(self, value: bytes) -> None:
        """Protocol 2 knows no bytes; Python writes them as this call."""
        self._call(GlobalName("_codecs", "encode"), (value.decode("latin-1"), "latin1"))

    def _tuple(self, value: tuple[Any, ...]) -> None:
        if not value:
            self.parts.append(_EMPTY_TUPLE)
            return
        short = len(value) < len(_TUPLES)
        if not short:
            self.parts.append(_MARK)
        for item in value:
            self.emit(item)
        self.parts.append(_TUPLES[len(value)] if short else _TUPLE)

    def _list(self, value: list[Any]) -> None:
        self.parts += [_EMPTY_LIST, _MARK]
        for item in value:
            self.emit(item)
        self.parts.append(_APPENDS)

    def _dict(self, value: dict[Any, Any]) -> None:
        self.parts.append(_EMPTY_DICT)
        self._items(value)

    def _ordered_dict(self, value: OrderedDict[Any, Any]) -> None:
        self._call(GlobalName("collections", "OrderedDict"), ())
        self._items(value)

    def _items(self, value: dict[Any, Any]) -> None:
        self.parts.append(_MARK)
        for key, item in value.items():
            self.emit(key)
            self.emit(item)
        self.parts.append(_SET_ITEMS)

    def _namespace(self, value: argparse.Namespace) -> None:
        self.emit(Instance(GlobalName("argparse", "Namespace"), state=dict(vars(value))))

    def _global(self, value: GlobalName) -> None:
        self.parts.append(_GLOBAL + f"{value.module}\n{value.name}\n".encode())

    def _instance(self, value: Instance) -> None:
        if value.arguments or value.state is None:
            self._call(value.cls, value.arguments)
        else:
            self._global(value.cls)
            self.parts += [_EMPTY_TUPLE, _NEW_OBJECT]
        if value.state is not None:
            self.emit(value.state)
            self.parts.append(_BUILD)

    def _tensor(self, value: PendingTensor) -> None:
        if value.dtype not in _STORAGE_NAMES:
            raise TypeError(f"a tensor of dtype {value.dtype} cannot be written into a torch file")
        self._global(GlobalName("torch._utils", "_rebuild_tensor_v2"))
        storage_class = GlobalName("torch", _STORAGE_NAMES[value.dtype])
        key = str(len(self.pending))
        self.parts.append(_MARK)
        self.emit(("storage", storage_class, key, "cpu", prod(value.shape)))
        self.parts.append(_PERSISTENT_ID)
        arguments: list[Any] = [0, value.shape, _strides(value.shape), False, OrderedDict()]
        for argument in arguments:
            self.emit(argument)
        self.parts += [_TUPLE, _REDUCE]
        self.pending.append(value)

    def _call(self, function: GlobalName, arguments: tuple[Any, ...]) -> None:
        self._global(function)
        self._tuple(arguments)
        self.parts.append(_REDUCE)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements from one index of each axis to the next, in C order."""
    return tuple(prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape)))


_KINDS: dict[type, Callable[[_Emitter, Any], None]] = {
    type(None): _Emitter._none,
    bool: _Emitter._bool,
    int: _Emitter._int,
    float: _Emitter._float,
    str: _Emitter._str,
    bytes: _Emitter._bytes,
    tuple: _Emitter._tuple,
    list: _Emitter._list,
    dict: _Emitter._dict,
    OrderedDict: _Emitter._ordered_dict,
    argparse.Namespace: _Emitter._namespace,
    GlobalName: _Emitter._global,
    Instance: _Emitter._instance,
    PendingTensor: _Emitter._tensor,
}
