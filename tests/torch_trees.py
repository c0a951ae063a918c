"""Compares trees that torch loads with what our reader gives."""

import argparse
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dongwu_jax.interop.torch_files.reader import Placeholder, StoredArray


def assert_same_tree(ours: Any, theirs: Any) -> None:
    """Equal in structure, values, shapes, dtypes and bits of tensors."""
    if isinstance(theirs, torch.Tensor):
        assert_same_tensor(ours, theirs)
    elif isinstance(theirs, torch.dtype):
        assert isinstance(ours, Placeholder)
        assert ours.name == str(theirs)
    elif isinstance(theirs, argparse.Namespace | types.SimpleNamespace):
        assert isinstance(ours, argparse.Namespace)
        assert_same_tree(vars(ours), vars(theirs))
    elif isinstance(theirs, dict):
        assert isinstance(ours, dict)
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same_tree(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, list | tuple)
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same_tree(our, their)
    elif type(theirs) in (int, float, str, bool, bytes, type(None)):
        assert type(ours) is type(theirs)
        assert ours == theirs or (ours != ours and theirs != theirs)
    else:
        assert isinstance(ours, Placeholder)


def assert_same_tensor(ours: Any, theirs: torch.Tensor) -> None:
    """Equal in shape, dtype and bits."""
    assert isinstance(ours, StoredArray)
    assert ours.shape == tuple(theirs.shape)
    assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
    values = ours.read()
    assert values.shape == ours.shape
    assert values.dtype == ours.dtype
    assert values.flags.c_contiguous
    assert values.flags.writeable
    assert values.tobytes() == bits(theirs).tobytes()


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor's values, in C order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def load_with_stubs(file: Any) -> Any:
    """What torch gives for a checkpoint whose Megatron classes are not installed."""
    return torch.load(file, weights_only=False, pickle_module=_Stubs)


class _StubUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(("megatron.", "transformer_engine.")):
            return type(name, (), {"__init__": lambda self, *args: None, "__module__": module})
        return super().find_class(module, name)


class _Stubs:
    Unpickler = _StubUnpickler
    load = staticmethod(lambda file, **options: _StubUnpickler(file, **options).load())
    __name__ = "stubs"


def write(path: Path, tree: Any) -> Path:
    """torch.save, returning the path."""
    torch.save(tree, path)
    return path
