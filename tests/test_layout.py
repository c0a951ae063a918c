"""Imports go downwards only: from tools and jobs to training, models, data and configuration."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dongwu_jax"

# The rooms of the package from the lowest up. A module may import from its own room and from those
# below; rooms on one line know nothing of each other.
LAYERS = (
    ("errors", "exit_codes"),
    ("command_line", "input_files", "output_files", "progress_bars"),
    ("sealed_json",),
    ("config",),
    ("parallel",),
    ("models", "data"),
    ("training",),
    ("interop",),
    ("generate", "plan", "report"),
    ("evaluate",),
    ("compress", "distill"),
    ("train", "quickstart"),
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}

# What each room of training may import of training beside itself; the step and the loop, above
# them, may import all.
WITHIN_TRAINING = {
    "records": (),
    "faults": ("records",),
    "checkpoints": ("records", "faults", "state", "trained_weights"),
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, inside functions, too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name of the module"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def room_of(module: str) -> str | None:
    """The room of a module; None for the package itself, which holds the version alone."""
    names = module.split(".")
    return names[1] if len(names) > 1 and names[1] in HEIGHT else None


def upward(module: str, path: Path) -> Iterator[str]:
    """The imports of a module that lead to a room beside or above its own."""
    room = room_of(module)
    for line, imported in imports(path):
        other = room_of(imported) if imported.split(".")[0] == PACKAGE else None
        if room is None or other is None or other == room:
            continue
        if HEIGHT[other] >= HEIGHT[room]:
            yield f"{path.relative_to(ROOT)}:{line}: {room} imports {other}"


def upward_in_training(module: str, path: Path) -> Iterator[str]:
    """The imports of a module in a room of training that lead out of it, but not downwards."""
    _, _, room, *_ = module.split(".")
    for line, imported in imports(path):
        names = imported.split(".")
        if names[:2] != [PACKAGE, "training"] or names[2] == room:
            continue
        if names[2] not in WITHIN_TRAINING[room]:
            yield f"{path.relative_to(ROOT)}:{line}: training/{room} imports {names[2]}"


def test_every_room_has_its_place():
    rooms = {name.split(".")[1] for name in modules() if "." in name}
    assert rooms == set(HEIGHT), "add the room to LAYERS, and to docs/architecture.md"


def test_imports_go_downwards():
    wrong = [problem for name, path in modules().items() for problem in upward(name, path)]
    assert wrong == []


def test_imports_go_downwards_in_training():
    rooms = {
        name: path
        for name, path in modules().items()
        if name.startswith(f"{PACKAGE}.training.") and path.parent.name != "training"
    }
    assert {path.parent.name for path in rooms.values()} == set(WITHIN_TRAINING)
    assert [
        problem for name, path in rooms.items() for problem in upward_in_training(name, path)
    ] == []


def test_the_package_needs_nothing_around_it():
    around = {"tools", "tests", "benchmarks"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {imported}"
        for path in modules().values()
        for line, imported in imports(path)
        if imported.split(".")[0] in around
    ]
    assert wrong == []


def test_the_page_of_the_architecture_has_the_same_layers():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = page.split("<!-- layers -->")[1].split("```")[1].strip().splitlines()
    assert [tuple(line.split()) for line in reversed(drawn)] == list(LAYERS)
    rooms = re.findall(r"^\| `training/(\w+)` \|", page, re.MULTILINE)
    assert list(reversed(rooms)) == list(WITHIN_TRAINING)


@pytest.mark.parametrize(
    ("line", "problems"),
    [
        ("from dongwu_jax.training.step import make_step", 1),
        ("def later():\n    import dongwu_jax.interop.hf", 1),
        ("from dongwu_jax import interop", 1),
        ("from dongwu_jax.data.loader import Loader", 1),  # beside it
        ("from dongwu_jax.models.llama import Llama", 0),
        ("from dongwu_jax.config import RunConfig\nfrom dongwu_jax import __version__", 0),
    ],
)
def test_an_import_upwards_is_found(
    line: str, problems: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "new.py"
    path.write_text(line)
    assert len(list(upward("dongwu_jax.models.new", path))) == problems


@pytest.mark.parametrize(
    ("room", "line", "problems"),
    [
        ("records", "from dongwu_jax.training.faults.watchdog import Watchdog", 1),
        ("records", "from dongwu_jax.training.state import TrainState", 1),
        ("faults", "def later():\n    from dongwu_jax.training import checkpoints", 1),
        ("faults", "from dongwu_jax.training.records.run_log import RunLog", 0),
        ("checkpoints", "from dongwu_jax.training.state import TrainState", 0),
        ("checkpoints", "from dongwu_jax.training.stepping import Stepping", 1),
    ],
)
def test_an_import_upwards_in_training_is_found(
    room: str, line: str, problems: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "new.py"
    path.write_text(line)
    assert len(list(upward_in_training(f"dongwu_jax.training.{room}.new", path))) == problems
