"""Every reader against damaged and hostile inputs: read rightly, or refused with one clear error.

`python benchmarks/fuzz.py` goes through more of the same, and through what takes longer.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from campaign import Summary, fuzz
from readers import READERS
from seeds import build_seeds

SEED = 0
INPUTS, INPUTS_WITH_JAX = 150, 25  # of each reader


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Valid inputs of every format."""
    folder = tmp_path_factory.mktemp("seeds")
    build_seeds(folder)
    return folder


@pytest.fixture(scope="module")
def summaries(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Summary]:
    """What became of the inputs, of all readers in one process."""
    jobs = [
        (name, 0, INPUTS_WITH_JAX if reader.needs_jax else INPUTS)
        for name, reader in READERS.items()
    ]
    return fuzz(jobs, SEED, sound, tmp_path_factory.mktemp("scratch"), cheap=True)


@pytest.mark.parametrize("name", READERS)
def test_each_input_is_read_or_refused(name: str, summaries: dict[str, Summary]) -> None:
    summary = summaries[name]
    assert summary.failures == []
    assert summary.read + summary.refused == summary.inputs > 0


def test_most_kinds_of_damage_are_noticed(summaries: dict[str, Summary]) -> None:
    refused = [name for name, summary in summaries.items() if summary.refused]
    # These are made anew when they are damaged.
    assert set(READERS) - set(refused) == {"index_cache", "preprocess_state", "run_folder"}


_FORBIDDEN = """
import json, os, socket, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from worker import Watch
allowed, elsewhere = Path("allowed"), Path("elsewhere")
allowed.mkdir()
watch = Watch()
with watch.over(allowed.absolute()):
    (allowed / "a").write_text("a")
    silent = list(watch.wrongs)
    elsewhere.write_text("b")
    elsewhere.rename("moved")
    os.system("true")
    try:
        socket.create_connection(("127.0.0.1", 9), 0.1)
    except OSError:
        pass
print(json.dumps([silent, watch.wrongs]))
"""


def test_what_is_forbidden_is_heard(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _FORBIDDEN, str(Path(__file__).parent)]
    told = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    silent, heard = json.loads(told)
    assert silent == []
    assert {words.split()[0] for words in heard} >= {"write", "os.rename", "os.system"}
    assert any(words.startswith("socket.") for words in heard)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_inputs_are_read_or_refused(
    name: str, sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    count = 10_000 // len(READERS) + 1
    scratch = tmp_path_factory.mktemp("scratch")
    summary = fuzz([(name, 1000, count)], SEED, sound, scratch)[name]
    assert summary.failures == []
    assert summary.inputs == count
