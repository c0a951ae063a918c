"""What whole runs do beside their work: nothing connects, keeps a secret, or writes elsewhere."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WATCHED = Path(__file__).parent / "watched"
SECRETS = {
    "HF_TOKEN": "hf_canaryAAAA",
    "WANDB_API_KEY": "canaryBBBB",
    "OPENAI_API_KEY": "sk-canaryCCCC",
    "AWS_SECRET_ACCESS_KEY": "canaryDDDD",
}
UMASK = 0o027


@dataclass(frozen=True)
class Runs:
    """Train, convert, evaluate, look: the commands of a day, in one process to save time.

    Attributes:
        place: everything may be written below it.
        said: stdout and stderr of all.
        notes: what the process was heard to do.
    """

    place: Path
    said: str
    notes: list[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("watched")
    for folder in ("home", "temporary", "work"):
        (place / folder).mkdir()
    work = place / "work"
    paragraphs = (ROOT / "LICENSE").read_text("ascii").split("\n\n")
    lines = [json.dumps({"text": text}) + "\n" for text in paragraphs]
    (work / "corpus.jsonl").write_text("".join(lines))
    settings = {
        "model": {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 32, "num_layers": 1}
        | {"num_heads": 2, "max_position_embeddings": 64},
        "data": {"blend": "data_text_document", "split": "90,10,0", "sequence_length": 32}
        | {"tokenizer": "400.model"},
        "training": {"duration": 2, "global_batch_size": 2},
        "evaluation": {"interval": 2},
        "checkpoint": {"directory": "run/checkpoints"},
    }
    (work / "run.yaml").write_text(yaml.safe_dump(settings))
    commands = [
        "train_tokenizer.py --input corpus.jsonl --vocab-size 400 --output 400.model",
        "preprocess_data.py --input corpus.jsonl --output-prefix data --append-eod "
        "--tokenizer-type Llama2Tokenizer --tokenizer-model 400.model",
        "dongwu_jax.train --config run.yaml",
        "convert.py --from run/checkpoints --to hf --to-format hf",
        "evaluate.py perplexity --model hf --data corpus.jsonl --lengths 32 --max-tokens 200 "
        "--json perplexity.json",
        "dongwu_jax.report run",
    ]
    kept = ("PATH", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {name: os.environ[name] for name in kept if name in os.environ} | SECRETS
    environment |= {"HOME": str(place / "home"), "TMPDIR": str(place / "temporary")}
    environment |= {"PYTHONPATH": f"{WATCHED}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu"}
    environment |= {"WATCH_NOTES": str(place / "notes"), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", _RUN_ALL, str(ROOT / "tools"), *commands],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        umask=UMASK,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    notes = (place / "notes").read_text("utf-8").splitlines()
    return Runs(place, ended.stdout + ended.stderr, notes)


_RUN_ALL = """
import runpy, sys
tools, *commands = sys.argv[1:]
for command in commands:
    name, *sys.argv[1:] = command.split()
    try:
        if name.endswith(".py"):
            runpy.run_path(f"{tools}/{name}", run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""


def test_the_watch_hears(tmp_path: Path) -> None:
    code = (
        "import socket, urllib.request\n"
        "for act in (lambda: socket.create_connection(('192.0.2.1', 9), 1),\n"
        "            lambda: urllib.request.urlopen('http://example.invalid', timeout=1),\n"
        "            lambda: open('here.txt', 'w')):\n"
        "    try: act()\n"
        "    except OSError: pass\n"
    )
    environment = {"PYTHONPATH": str(WATCHED), "WATCH_NOTES": str(tmp_path / "notes")}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
    notes = (tmp_path / "notes").read_text().splitlines()
    assert "connect example.invalid" in notes
    assert "connect 192.0.2.1" in notes
    assert f"write {tmp_path / 'here.txt'}" in notes


def test_nothing_connects_unless_asked(runs: Runs) -> None:
    assert [note for note in runs.notes if note.startswith("connect")] == []


def test_secrets_of_the_environment_are_kept_nowhere(runs: Runs) -> None:
    files = [path for path in runs.place.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert any("checkpoints" in path.parts for path in files)
    for secret in SECRETS.values():
        assert secret not in runs.said
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_all_that_is_written_lies_where_the_output_is(runs: Runs) -> None:
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(runs.place))
    # Python tries whether its temporary folder can be written to.
    allowed = (*(str(runs.place / name) for name in ("work", "temporary")), cache, "/dev/null")
    written = {note.partition(" ")[2] for note in runs.notes if note.startswith("write")}
    assert len(written) > 20
    assert sorted(path for path in written if not path.startswith(allowed)) == []
    for folder in ("home", "temporary"):
        assert list((runs.place / folder).iterdir()) == []


def test_nobody_may_read_more_than_the_umask_says(runs: Runs) -> None:
    made = [path for path in (runs.place / "work").rglob("*") if not path.is_symlink()]
    given = {"corpus.jsonl", "run.yaml"}  # written by this test
    open_to_all = [
        path
        for path in made
        if path.name not in given and stat.S_IMODE(path.stat().st_mode) & UMASK
    ]
    assert open_to_all == []
