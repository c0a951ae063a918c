"""Running tools/synthesize.py in processes of its own, with a vLLM that needs no model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import tokenizers

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "synthesize.py"
FAKE_VLLM = Path(__file__).parent / "fake_vllm"
SENTENCES = ("The yield of bond {} rises. ", "债券{}的收益率上升。", "Bank {} closes early today. ")


def save_model(folder: Path, chat_template: str | None = "chat") -> Path:
    """A folder that has of a model what is read without vLLM: the tokenizer."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([s.format("") for s in SENTENCES] * 3, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": chat_template} if chat_template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def document(number: int) -> str:
    """A text of about 200 to 600 tokens."""
    lines = [SENTENCES[(number + n) % 3].format(number * n) for n in range(10 + number % 20)]
    return "".join(lines)


class Job:
    """The command line of a job, to be run with changes."""

    def __init__(self, model: Path, corpus: Path, **flags: object) -> None:
        self.model = model
        self.corpus = corpus
        defaults: dict[str, object] = {"prefix_tokens": "8:32", "records_per_part": 10}
        self.flags = defaults | {"max_new_tokens": 16} | flags

    def start(
        self, output: Path, environment: dict[str, str] | None = None, **flags: object
    ) -> subprocess.Popen[str]:
        """Start it; stdout and stderr are pipes."""
        command = [sys.executable, str(TOOL)]
        given = {"model": self.model, "input": self.corpus, "output": output}
        for name, value in (given | self.flags | flags).items():
            values = value if isinstance(value, list) else [value]
            for each in values:
                command += ["--" + name.replace("_", "-"), str(each)]
        paths = f"{FAKE_VLLM}{os.pathsep}{ROOT}"
        variables = os.environ | {"PYTHONPATH": paths} | (environment or {})
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=variables, stdout=pipe, stderr=pipe, text=True)

    def run(
        self, output: Path, environment: dict[str, str] | None = None, **flags: object
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end, whatever that is."""
        process = self.start(output, environment, **flags)
        told, said = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, told, said)

    def must_run(self, output: Path, **flags: object) -> str:
        """Run it to its good end; what it printed."""
        ended = self.run(output, None, **flags)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def must_fail(self, output: Path, **flags: object) -> str:
        """Its one error message."""
        ended = self.run(output, None, **flags)
        assert ended.returncode == 1, ended.stderr
        assert "Traceback" not in ended.stderr
        assert ended.stderr.count("error: ") == 1, ended.stderr
        return ended.stderr


def records(folder: Path, kind: str = "part") -> list[dict[str, Any]]:
    """All records of the files of a kind, in order."""
    lines = [line for path in sorted(folder.glob(f"{kind}-*.jsonl")) for line in path.open("rb")]
    return [json.loads(line) for line in lines]


def files(folder: Path) -> dict[str, bytes]:
    """Name and content of all that a job made, but for the list of its runs."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name != "runs.jsonl" and not path.name.startswith(".lock")
    }
