"""The only global names that a pickle may mention, each standing for something inert.

Nothing is imported and nothing of another package is ever called: a known name becomes a
`Placeholder`, any other name refuses the file.
"""

import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # the names of protocol 2 in Python 3
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False, slots=True)
class Placeholder:
    """An inert stand-in for a global, or for an object made by calling one.

    Compared and hashed by identity, so that it can be a key of a dict.
    """

    name: str  # e.g. "torch.bfloat16" or "megatron.core.enums.ModelType"
    arguments: tuple[Any, ...] = ()
    state: Any = None  # of an object with attributes: their dict

    def __repr__(self) -> str:
        """Its name alone: arguments may be large, or lead back to it."""
        return f"Placeholder({self.name!r})"


# Python 3.11.2 (Debian 12) and near ones pickle a member of an enum as getattr(class, name), others
# as class(value).
MEMBER_OF_CLASS = "builtins.getattr"

_DTYPES = (
    "float32 float float64 double float16 half bfloat16 complex32 complex64 complex128 chalf "
    "cfloat cdouble uint8 uint16 uint32 uint64 int8 int16 short int32 int int64 long bool "
    "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu "
    "quint8 qint8 qint32 quint4x2 quint2x4"
)
_KNOWN = frozenset(
    [f"torch.{name}" for name in _DTYPES.split()]
    + [f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3")]
    + [f"torch._utils._rebuild_{name}" for name in ("parameter", "parameter_with_state")]
    + [
        "torch._tensor._rebuild_from_type_v2",
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.Size",
        "torch.device",
        "torch.serialization._get_layout",
    ]
    + [f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")]
    + [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    + [f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")]
    + ["numpy.dtype", "numpy.ndarray"]
    + [f"builtins.{name}" for name in ("set", "frozenset", "bytes", "bytearray", "slice")]
    + [f"builtins.{name}" for name in ("int", "float", "bool", "complex", "list", "dict")]
    + [f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath")]
    + [f"pathlib.{name}" for name in ("PurePath", "PurePosixPath", "PureWindowsPath")]
    + [f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath")]
    + [f"pathlib._local.{name}" for name in ("PurePath", "PurePosixPath", "PureWindowsPath")]
    + [
        "_codecs.encode",
        "_io.BytesIO",
        "argparse.Namespace",
        MEMBER_OF_CLASS,
        "collections.OrderedDict",
        "collections.defaultdict",
        "io.BytesIO",
        "signal.Signals",
        "types.SimpleNamespace",
    ]
)
_KNOWN_PACKAGES = ("megatron.", "transformer_engine.", "torch.distributed.checkpoint.")
# Of these packages classes only: a dot or a small letter would name a function, or another module.
_CLASS = re.compile(
    r"[A-Z][A-Za-z0-9_]*|_MEM_FORMAT_ENCODING|_HFStorageInfo|_StorageInfo|_StoragePrefix"
)
_LONGEST_NAME = 250
_STORAGE = re.compile(r"torch\.(cuda\.|storage\.)?[A-Za-z0-9]+Storage")


def modern_name(module: str, name: str) -> tuple[str, str]:
    """Module and name of a global; pickles of protocol 2 use those of Python 2."""
    return NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))


def find_global(module: str, name: str) -> Placeholder | None:
    """The stand-in for a global that a pickle mentions; None when it is not known."""
    full = f"{module}.{name}"
    if len(full) > _LONGEST_NAME:
        return None
    if full in _KNOWN or _STORAGE.fullmatch(full) or _is_class_of_known_package(module, name):
        return Placeholder(full)
    return None


def may_have_members(full_name: str) -> bool:
    """Whether a global may be an enum: a class of a known package, or of the standard library."""
    module, _, name = full_name.rpartition(".")
    return full_name == "signal.Signals" or _is_class_of_known_package(module, name)


def _is_class_of_known_package(module: str, name: str) -> bool:
    return f"{module}.".startswith(_KNOWN_PACKAGES) and _CLASS.fullmatch(name) is not None
