"""Running command lines as a user does, inside this process."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from dongwu_jax.command_line import run_command_line

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def load_tool(name: str) -> ModuleType:
    """The module tools/NAME.py, which is not part of the package."""
    return load_script(TOOLS / f"{name}.py")


def load_script(path: Path) -> ModuleType:
    """The module of a script that is not part of the package."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exit_code(main: Callable[[list[str]], int | None], *arguments: object) -> int:
    """The exit code of a command; anything but a `UserError` or argparse's exit comes through."""
    with pytest.raises(SystemExit) as exit_of:
        run_command_line(partial(main, [str(argument) for argument in arguments]))
    return exit_of.value.code or 0  # type: ignore[return-value]


def failure(capsys: pytest.CaptureFixture[str], main: Callable, *arguments: object) -> str:
    """The one message of a command that must end with exit code 1 and say nothing else."""
    capsys.readouterr()
    assert exit_code(main, *arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: "), message
    assert message.count("error: ") == 1, message
    assert "Traceback" not in message
    return message


def cut_short(path: Path) -> Path:
    """Keep the first half of a file, as an interrupted copy does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path
