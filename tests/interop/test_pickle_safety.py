"""Real attacks: each is refused by name, and none leaves a trace.

Every payload would create the file `sentinel` if it ran.
"""

import builtins
import copyreg
import functools
import importlib
import io
import operator
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_trees import write

from dongwu_jax.errors import UserError
from dongwu_jax.interop.torch_files.reader import Placeholder, read_pickle, read_torch_file


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


class RawGlobal:
    """A call of a global by a name that no pickler would write."""

    def __init__(self, module: str, name: str, arguments: tuple[Any, ...]):
        self.module, self.name, self.arguments = module, name, arguments


@pytest.fixture
def sentinel(tmp_path: Path) -> Any:
    """A path that must not exist after the test."""
    path = tmp_path / "sentinel"
    yield path
    assert not path.exists()


def payloads(sentinel: Path) -> dict[str, Any]:
    """Attacks by the global that the error must name."""
    touch = f"touch {sentinel}"
    code = f"open({str(sentinel)!r}, 'w')"
    return {
        "posix.system": Call(os.system, touch),
        "subprocess.Popen": Call(
            subprocess.Popen, touch, -1, None, None, None, None, None, True, True
        ),
        "subprocess.check_output": Call(subprocess.check_output, ["touch", str(sentinel)]),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "io.open": Call(open, str(sentinel), "w"),
        "builtins.getattr": Call(getattr, "text", "upper"),
        "builtins.__import__": Call(builtins.__import__, "antigravity"),
        "importlib.import_module": Call(importlib.import_module, "antigravity"),
        "runpy.run_path": Call(runpy.run_path, "attack.py"),
        "shutil.rmtree": Call(shutil.rmtree, str(sentinel.parent)),
        "functools.partial": Call(functools.partial, os.system, touch),
        "operator.attrgetter": Call(operator.attrgetter, "system"),
        "operator.methodcaller": Call(operator.methodcaller, "system", touch),
        "copyreg._reconstructor": Call(copyreg._reconstructor, Call, object, None),
        "torch.hub.load": Call(torch.hub.load, "repository", "model"),
        "torch.jit._serialization.load": Call(torch.jit.load, "script.pt"),
        "torch.serialization.load": Call(torch.load, "other.pt"),
        "torch._utils._rebuild_qtensor": Call(torch._utils._rebuild_qtensor),
        "numpy.load": Call(np.load, "array.npy"),
        "pathlib.Path.touch": RawGlobal("pathlib", "Path.touch", (str(sentinel),)),
        "collections.OrderedDict.fromkeys": RawGlobal("collections", "OrderedDict.fromkeys", ()),
        "torch.storage.os.system": RawGlobal("torch.storage", "os.system", (touch,)),
        "megatron_evil.run": RawGlobal("megatron_evil", "run", ()),
        "transformer_engine_evil.run": RawGlobal("transformer_engine_evil", "run", ()),
        "torch.distributed.checkpoint_evil.f": RawGlobal(
            "torch.distributed.checkpoint_evil", "f", ()
        ),
        "megatron.core.os.system": RawGlobal("megatron.core", "os.system", (touch,)),
        "megatron.core.utils.os.system": RawGlobal("megatron.core.utils", "os.system", (touch,)),
        "megatron.core.Model.run": RawGlobal("megatron.core", "Model.run", ()),
        "megatron.core.utils._run": RawGlobal("megatron.core.utils", "_run", ()),
        "transformer_engine.os.system": RawGlobal("transformer_engine.os", "system", (touch,)),
        "torch.distributed.checkpoint.utils.os.system": RawGlobal(
            "torch.distributed.checkpoint.utils", "os.system", (touch,)
        ),
        "megatron.core.Xx": RawGlobal("megatron.core", "X" + "x" * 250, ()),
        "pickle.loads": Call(pickle.loads, b"."),
        "sys.exit": Call(sys.exit, 3),
    }


NAMES = list(payloads(Path("x")))


def dump(payload: Any, protocol: int = 4) -> bytes:
    """The pickle of an attack."""
    if not isinstance(payload, RawGlobal):
        return pickle.dumps({"model": payload}, protocol)
    text = b"".join(text_of(part) for part in (payload.module, payload.name))
    arguments = pickle.dumps(payload.arguments, 2)[2:-1]
    return b"\x80\x04" + text + b"\x93" + arguments + b"R."


def text_of(text: str) -> bytes:
    """The instruction that pushes a text."""
    return b"\x8c" + bytes([len(text)]) + text.encode()


def torch_file(path: Path, data: bytes) -> Path:
    """A torch file with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(16))
    return path


def assert_refused(path: Path, name: str, read: Callable[[Path], Any] = read_torch_file) -> None:
    with pytest.raises(UserError) as error:
        read(path)
    message = str(error.value)
    assert name in message
    assert path.name in message
    assert "nothing was executed" in message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_attacks_are_refused_by_name(
    tmp_path: Path, sentinel: Path, name: str, protocol: int
) -> None:
    data = dump(payloads(sentinel)[name], protocol)
    assert_refused(torch_file(tmp_path / "attack.pt", data), name)
    (tmp_path / ".metadata").write_bytes(data)
    assert_refused(tmp_path / ".metadata", name, read_pickle)


SYSTEM = Call(os.system, "touch sentinel")


class WithState:
    """Pickles as NEWOBJ and BUILD with an attack as its state."""

    def __getstate__(self) -> Any:
        return {"x": SYSTEM}


@pytest.mark.parametrize(
    "tree",
    [
        {"model": {"weight": torch.ones(2), "bias": SYSTEM}},
        {"args": [1, (2, {"x": SYSTEM})]},
        {SYSTEM: 1},
        OrderedDict(a=SYSTEM),
        (torch.ones(2), SYSTEM),
    ],
)
def test_attacks_anywhere_in_a_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentinel: Path, tree: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(write(tmp_path / "attack.pt", tree), "posix.system")


def test_attack_in_the_hooks_of_a_tensor(tmp_path: Path, sentinel: Path) -> None:
    class Hooked(torch.Tensor):
        def __reduce_ex__(self, protocol: int) -> Any:
            function, arguments = torch.ones(2).__reduce_ex__(protocol)[:2]
            return function, (
                *arguments[:5],
                OrderedDict(hook=Call(os.system, f"touch {sentinel}")),
            )

    tensor = torch.ones(2).as_subclass(Hooked)
    assert_refused(write(tmp_path / "attack.pt", {"w": tensor}), "posix.system")


TOUCH = b"Vtouch sentinel\n"


@pytest.mark.parametrize(
    "data",
    [
        b"cposix\nsystem\n(" + TOUCH + b"tR.",  # REDUCE
        b"(" + TOUCH + b"iposix\nsystem\n.",  # INST
        b"(cposix\nsystem\n" + TOUCH + b"o.",  # OBJ
        b"\x80\x02cposix\nsystem\n(" + TOUCH + b"t\x81.",  # NEWOBJ
        b"\x80\x04cposix\nsystem\n(" + TOUCH + b"t}\x92.",  # NEWOBJ_EX
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93(" + TOUCH + b"tR.",  # STACK_GLOBAL
        b"cargparse\nNamespace\n)R}(Vx\ncposix\nsystem\n(" + TOUCH + b"tRub.",  # inside BUILD
        b"cposix\nsystem\n0N.",  # dropped again
    ],
)
def test_every_instruction_that_can_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentinel: Path, data: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(torch_file(tmp_path / "attack.pt", data), "posix.system")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02\x82\x01.",  # EXT1: an object of the process' own registry
        b"\x80\x02\x84\xff\xff\xff\x7f.",  # EXT4
        b"P0\n.",  # PERSID
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"cargparse\nNamespace\n)R(V__class__\ncargparse\nNamespace\nd(lb.",  # BUILD from a list
        b"cargparse\nNamespace\n)R]b.",
        b"cargparse\nNamespace\n)R}K\x01Nsb.",  # a field that is not named
        b"Vtext\n)R.",  # calls a text
        b"ccollections\nOrderedDict\nVx\nR.",  # arguments that are no tuple
        b"]]N}s.",
        b"\x80\x04]\x8c\x01x\x93.",  # a global whose module is a list
        b"ctorch._utils\n_rebuild_tensor_v2\n(Vx\nK\x00))tR.",  # a tensor of a text
        b"ctorch._tensor\n_rebuild_from_type_v2\n(c_codecs\nencode\nNVx\nNtR.",
    ],
)
def test_nonsense_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match=r"attack\.pt"):
        read_torch_file(torch_file(tmp_path / "attack.pt", data))


def test_known_classes_stay_inert(tmp_path: Path, sentinel: Path) -> None:
    data = dump(RawGlobal("megatron.core", "System", (f"touch {sentinel}",)))
    made = read_torch_file(torch_file(tmp_path / "inert.pt", data))
    assert isinstance(made, Placeholder)
    assert made.name == "megatron.core.System"
    assert made.arguments == (f"touch {sentinel}",)


def test_fields_of_a_namespace_do_not_replace_its_class(tmp_path: Path) -> None:
    data = b"cargparse\nNamespace\n)R}(V__class__\ncmegatron.core\nX\nub."
    made = read_torch_file(torch_file(tmp_path / "inert.pt", data))
    assert type(made).__name__ == "Namespace"


def test_extra_state_is_never_looked_into(tmp_path: Path, sentinel: Path) -> None:
    attack = pickle.dumps(Call(os.system, f"touch {sentinel}"))
    tree = {
        "a._extra_state": io.BytesIO(attack),
        "b._extra_state": torch.tensor(list(attack), dtype=torch.uint8),
        "c._extra_state": attack,
    }
    ours = read_torch_file(write(tmp_path / "extra.pt", tree))
    assert ours["a._extra_state"].state[0] == attack
    assert ours["b._extra_state"].read().tobytes() == attack
    assert ours["c._extra_state"] == attack


@pytest.mark.parametrize(
    "name",
    [
        "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        "torch.distributed.checkpoint.filesystem._StoragePrefix",
        "torch.distributed.checkpoint._hf_utils._HFStorageInfo",
        "megatron.core.transformer.enums.InferenceCudaGraphScope",
    ],
)
def test_classes_of_real_checkpoints_are_known(tmp_path: Path, name: str) -> None:
    data = dump(RawGlobal(*name.rsplit(".", 1), ()))
    assert read_torch_file(torch_file(tmp_path / "inert.pt", data)).name == name


ENCODING = ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING")


def member(owner: tuple[str, str], name: str) -> bytes:
    """getattr(owner, name), as Python 3.11.2 pickles a member of an enum."""
    function, kind = (b"".join(map(text_of, names)) + b"\x93" for names in (GETATTR, owner))
    return b"\x80\x04" + function + kind + text_of(name) + b"\x86R."


GETATTR = ("builtins", "getattr")


@pytest.mark.parametrize("owner", [ENCODING, ("megatron.core.enums", "ModelType")])
def test_a_member_of_an_enum_is_known_by_name(tmp_path: Path, owner: tuple[str, str]) -> None:
    found = read_torch_file(torch_file(tmp_path / "member.pt", member(owner, "preserve_format")))
    assert (found.name, found.arguments) == (".".join(owner), ("preserve_format",))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (ENCODING, "__reduce__"),
        (ENCODING, "_value2member_map_"),
        (ENCODING, "a.b"),
        (("builtins", "dict"), "fromkeys"),
        (("torch", "Tensor"), "numpy"),
        (GETATTR, "name"),
    ],
)
def test_nothing_else_is_got_from_anything(
    tmp_path: Path, owner: tuple[str, str], name: str
) -> None:
    file = torch_file(tmp_path / "attack.pt", member(owner, name))
    with pytest.raises(UserError, match=r"builtins\.getattr.*refused, nothing was executed"):
        read_torch_file(file)


def nested(levels: int, opening: bytes, closing: bytes) -> bytes:
    return b"\x80\x02" + opening * levels + b"N" + closing * levels


def shared_tuples() -> bytes:
    """A tuple of 1,000 times a tuple of 1,000 times, at four levels: 10^12 elements to hash."""
    levels = [b"(" + b"K\x01" * 1000 + b"tq\x00"]
    levels += [b"0(" + b"h%c" % (level - 1) * 1000 + b"tq%c" % level for level in range(1, 4)]
    return b"".join(levels)


def text_called(function: bytes) -> bytes:
    """A list of 400 copies of one text of 200 kB."""
    return b"X" + (200_000).to_bytes(4, "little") + b"x" * 200_000 + called(function)


def tuple_called(function: bytes) -> bytes:
    """A list of 400 copies of one list of 50,000 numbers."""
    return b"](" + b"K\x01" * 50_000 + b"e" + called(function)


def called(function: bytes) -> bytes:
    return b"q\x010" + function + b"q\x020](" + b"h\x02h\x01\x85R" * 400 + b"e."


def fields_copied() -> bytes:
    """A list of 400 namespaces with the same 20,000 fields."""
    fields = b"".join(b"Vx%d\nN" % number for number in range(20_000))
    made = b"cargparse\nNamespace\nq\x020](" + b"h\x02)Rh\x01b" * 400 + b"e."
    return b"}(" + fields + b"uq\x010" + made


def shared_lists() -> bytes:
    """A list of 50,000 times one list of 50,000 elements."""
    return b"](" + b"N" * 50_000 + b"eq\x000](" + b"h\x00" * 50_000 + b"e."


@pytest.mark.parametrize(
    "data",
    [
        nested(100_000, b"]", b"a") + b".",
        nested(100_000, b"", b"\x85") + b".",
        b"\x80\x02}" + nested(1_000_000, b"", b"\x85")[2:] + b"Ns.",  # hashing would overflow
        b"\x80\x02cbuiltins\nset\n]" + nested(1_000_000, b"", b"\x85")[2:] + b"a\x85R.",
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
        b"\x80\x02}q\x00Vx\n]h\x00as.",
        b"\x80\x02]" + b"".join(b"q%c]h%ch%ch%c\x87a" % (i, i, i, i) for i in range(60)) + b".",
        b"\x80\x02}]Ns.",  # a list as a key
        b"\x80\x02}}Ns.",
        b"\x80\x02}" + shared_tuples() + b"Ns.",
        b"\x80\x02cbuiltins\nset\n]" + shared_tuples() + b"a\x85R.",
        b"\x80\x02}\x8a\x21" + b"\x01" * 33 + b"Ns.",  # long numbers are hashed anew each time
        text_called(b"c_codecs\nencode\n"),
        text_called(b"cbuiltins\nbytes\n"),
        text_called(b"ctorch\nSize\n"),
        tuple_called(b"ctorch\nSize\n"),
        tuple_called(b"cbuiltins\nset\n"),
        fields_copied(),
        b"c_codecs\nencode\n(Vx\n" + shared_tuples() + b"tR.",  # an encoding never to be shown
        shared_lists(),
        b"\x80\x02(VxVy\n\x8b\xff\xff\xff\x7f.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # a text of 2^63 - 1 bytes
        b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\x00\x00x.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"h\x05.",
        b"t.",
        b"\x80\x02\x87.",
        b".",
        b"",
        b"NN.",
        b"(.",
        b"\xff",
    ],
)
def test_exhaustion_and_garbage_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="its pickle is damaged"):
        read_torch_file(torch_file(tmp_path / "bomb.pt", data))
