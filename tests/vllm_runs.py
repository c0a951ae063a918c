"""Running scripts in vLLM's own environment, whose interpreter the variable VLLM_PYTHON names."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from reference_models import train_tiny_tokenizer


def need_vllm() -> None:
    """Skip the test where there is no vLLM."""
    if "VLLM_PYTHON" not in os.environ:
        pytest.skip("needs vLLM: set VLLM_PYTHON to the interpreter of its environment")


def run_in_vllm(script: str, folder: Path, tokens: list[int], place: Path) -> Any:
    """What a script, given a model, tokens as JSON and a file, writes into the file as JSON."""
    (place / "score.py").write_text(script)
    result = place / "result.json"
    told = subprocess.run(
        [
            *(os.environ["VLLM_PYTHON"], str(place / "score.py")),
            *(str(folder), json.dumps(tokens), str(result)),
        ],
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    return json.loads(result.read_text())


def tokenizer_folder(place: Path) -> Path:
    """A folder with a tiny tokenizer."""
    folder = place / "tokenizer"
    folder.mkdir()
    train_tiny_tokenizer(folder).rename(folder / "tokenizer.model")
    return folder
