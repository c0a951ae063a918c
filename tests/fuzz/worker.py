"""Reads damaged inputs in a process of its own; a JSON line on stdout for each.

Command: python worker.py JOBS SEED SEEDS SCRATCH CHEAP; JOBS is a JSON list of [reader, first,
count]. What a reader may not do (run commands, connect, write outside its place) is heard by
Python's audit events, and what it takes of memory and time is measured.
"""

import contextlib
import json
import os
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

ADDRESS_SPACE_BYTES = 6 << 30
SLOW_SECONDS = 60.0
_LONGEST_MESSAGE = 4000
_RUNNING = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
_CONNECTING = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request")
_CHANGING = (
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink"),
    *("os.chmod", "os.chown", "shutil.rmtree", "shutil.move"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """What the process does while a reader reads."""

    def __init__(self) -> None:
        self.wrongs: list[str] = []
        self._on = False
        self._places: tuple[str, ...] = ()
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def over(self, *places: Path) -> Iterator[None]:
        """Listen; writing is allowed below these folders only."""
        self.wrongs.clear()
        self._places = tuple(str(place) for place in places)
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in _RUNNING or event in _CONNECTING:
            self.wrongs.append(f"{event} {arguments[:2]}"[:200])
        elif event in _CHANGING and arguments[-1] in (-1, None):  # else relative to a folder
            self._must_be_ours(event, arguments[0])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            self._must_be_ours("write", arguments[0])

    def _must_be_ours(self, event: str, path: Any) -> None:
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if name and name != "/dev/null" and not os.path.abspath(name).startswith(self._places):
            self.wrongs.append(f"{event} {name}"[:200])


@dataclass
class Place:
    """The folders of a worker."""

    seeds: Path
    scratch: Path

    def __post_init__(self) -> None:
        self.temporary, self.working = self.scratch / "temporary", self.scratch / "working"
        for folder in (self.temporary, self.working):
            folder.mkdir(parents=True, exist_ok=True)
        self.input = self.scratch / "input"


def main() -> int:
    """Do the jobs of the command line."""
    jobs, seed, seeds, scratch, cheap = sys.argv[1:]
    place = Place(Path(seeds), Path(scratch))
    os.environ["TMPDIR"] = str(place.temporary)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.chdir(place.working)
    warnings.simplefilter("ignore")
    if cheap == "True":
        from dongwu_jax.data import template_sandbox

        template_sandbox._MOST_SECONDS = 0.1
    watch = Watch()
    for name, first, count in json.loads(jobs):
        _prepare(name, place)
        for index in range(first, first + count):
            record = _try(name, index, seed, place, watch, cheap == "True")
            print(json.dumps({"reader": name, "index": index} | record), flush=True)
    return 0


def _prepare(name: str, place: Place) -> None:
    """Load what is loaded late; a seed must be sound. Then limit the memory."""
    from mutations import copy_seed
    from readers import READERS

    copy_seed(place.seeds / READERS[name].seed, place.input)
    READERS[name].read(place.input)
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (held + ADDRESS_SPACE_BYTES, hard))


def _try(
    name: str, index: int, seed: str, place: Place, watch: Watch, cheap: bool
) -> dict[str, Any]:
    """Damage one input, read it, judge what came of it."""
    from mutations import copy_seed, mutate
    from readers import READERS

    from dongwu_jax.errors import UserError

    reader = READERS[name]
    copy_seed(place.seeds / reader.seed, place.input)
    done = mutate(place.input, random.Random(f"{seed} {name} {index}"), cheap)
    before = _listing(place.input)
    outcome, why = "read", ""
    began, held = time.monotonic(), _peak() if cheap else _reset_peak()
    with watch.over(place.temporary, *([place.scratch] if reader.may_write else [])):
        try:
            reader.read(place.input)
        except UserError as error:
            outcome, why = "refused", str(error)
        except BaseException as error:  # what must not come: this is what is looked for
            outcome, why = "failed", _described(error)
    seconds, peak = time.monotonic() - began, _peak() - held
    if outcome == "refused":
        outcome, why = _judge_message(why, place.input, reader.names)
    wrongs = [*watch.wrongs, *(f"left {path}" for path in _left_over(place))]
    if not reader.may_write and _listing(place.input) != before:
        wrongs.append("the input was changed")
    if peak > reader.memory_bytes:
        wrongs.append(f"took {peak >> 20} MiB")
    if seconds > SLOW_SECONDS:
        wrongs.append(f"took {seconds:.0f} seconds")
    if wrongs:
        outcome, why = "failed", f"{'; '.join(wrongs)[:600]} ({outcome}: {why[:300]})"
    return {"outcome": outcome, "why": why[:1500], "mutation": done, "seconds": round(seconds, 3)}


def _judge_message(message: str, folder: Path, names: tuple[str, ...]) -> tuple[str, str]:
    """Whether an error names its file, and can be read."""
    if str(folder) not in message and not any(name in message for name in names):
        return "failed", f"the error names no file: {message}"
    if len(message) > _LONGEST_MESSAGE:
        return "failed", f"the error has {len(message)} characters: {message[:200]}"
    return "refused", message


def _described(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    return f"{type(error).__name__}: {error}"[:400] + f" at {where}"


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        is_folder = path.is_dir() and not path.is_symlink()
        found.append((str(path), *((0, 0) if is_folder else (about.st_size, about.st_mtime_ns))))
    return found


def _left_over(place: Place) -> list[str]:
    """Files where none may remain; they are removed."""
    names = []
    for folder in (place.temporary, place.working):
        for path in folder.rglob("*"):
            if path.is_file():
                names.append(str(path))
                path.unlink()
    return names


def _reset_peak() -> int:
    """Start to measure anew; bytes that are held now."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _peak()


def _peak() -> int:
    """Most bytes that were resident."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    sys.exit(main())
