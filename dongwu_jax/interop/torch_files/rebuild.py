"""What the functions and classes that a checkpoint's pickle calls give here."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from dongwu_jax.interop.torch_files.globals import Placeholder
from dongwu_jax.interop.torch_files.soundness import DamagedPickleError, require_key
from dongwu_jax.interop.torch_files.stored_array import UNTYPED_DTYPES, Storage, StoredArray

_LATIN = ("latin1", "latin-1")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredArray:
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, Storage) or any(type(number) is not int for number in numbers):
        raise DamagedPickleError("a tensor is made from something else than a storage and integers")
    return StoredArray(storage, offset, tuple(shape), tuple(strides))


def _tensor_of_dtype(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    gradient: Any,
    hooks: Any,
    dtype: Any,
    *_: Any,
) -> StoredArray:
    dtype = UNTYPED_DTYPES[dtype.name]
    return _tensor(dataclasses.replace(storage, dtype=dtype), offset, shape, strides)


def _parameter(data: Any, *_: Any) -> StoredArray:
    if not isinstance(data, StoredArray):
        raise DamagedPickleError("a Parameter holds something else than a tensor")
    return data


def _tensor_with_attributes(function: Any, kind: Any, arguments: Any, state: Any) -> StoredArray:
    if not isinstance(function, Placeholder) or not function.name.startswith("torch._utils."):
        raise DamagedPickleError("a tensor is made by something else than torch")
    return _parameter(REBUILD[function.name](*arguments))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in _LATIN:
        raise DamagedPickleError("bytes are written as text in another encoding than latin1")
    return text.encode("latin-1")


def _bytes(value: Any = b"", encoding: Any = "latin1") -> bytes:
    return value if isinstance(value, bytes) else _encode(value, encoding)


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    if not pairs:
        return {}
    raise DamagedPickleError("a dict is made from arguments")


def _default_dict(factory: Any = None) -> dict[Any, Any]:
    return {}


def _set(members: Any = ()) -> set[Any]:
    return {require_key(member) for member in members}


def _frozenset(members: Any = ()) -> frozenset[Any]:
    return frozenset(_set(members))


def _namespace() -> argparse.Namespace:
    return argparse.Namespace()


def _size(sizes: Any = ()) -> tuple[int, ...]:
    if not isinstance(sizes, list | tuple):
        raise DamagedPickleError(f"a Size is made from a {type(sizes).__name__}")
    return tuple(sizes)


REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch.Size": _size,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _default_dict,
    "argparse.Namespace": _namespace,
    "types.SimpleNamespace": _namespace,
}
