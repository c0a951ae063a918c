"""The tour, made small: every command runs, the summary says what happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SMALL = [
    "model.vocab_size=500",
    "model.hidden_size=48",
    "model.intermediate_size=96",
    "model.num_layers=1",
    "training.duration=30",
    "schedule.warmup=3",
    "evaluation.interval=0",
    "logging.interval=5",
]


def tour(out: Path, *arguments: str) -> dict:
    command = [sys.executable, "-m", "dongwu_jax.quickstart", "--out", str(out), *arguments]
    one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=one_device)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return json.loads((out / "summary.json").read_text("utf-8"))


@pytest.mark.slow
def test_tour_of_the_python_library(tmp_path):
    out = tmp_path / "tour"
    summary = tour(out, "--corpus", "python-library", *SMALL)
    assert summary["steps"] == 30
    assert summary["last_loss"] < summary["first_loss"] - 1
    assert summary["perplexity_factor"] > 3
    assert summary["bits_per_byte_after"] < summary["bits_per_byte_before"]
    assert (out / "hf" / "model.safetensors").is_file()
    assert len(summary["generated"]) > 10
    steps = [json.loads(line)["step"] for line in (out / "run/metrics.jsonl").open()]
    assert steps == [1, 5, 10, 15, 16, 20, 25, 30]  # two halves, one log
    again = tour(out, "--corpus", "python-library", *SMALL)  # replaces the earlier tour
    assert again["last_loss"] == summary["last_loss"]


def test_a_folder_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    command = [sys.executable, "-m", "dongwu_jax.quickstart", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "is not from an earlier tour" in result.stderr
    assert (tmp_path / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize("name", ["gone.jsonl", "gone"])
def test_a_missing_corpus_is_noticed_before_anything_is_deleted(tmp_path, name):
    (tmp_path / ".quickstart").write_text("")
    (tmp_path / "corpus").mkdir()
    command = [sys.executable, "-m", "dongwu_jax.quickstart", "--out", str(tmp_path)]
    gone = [*command, "--corpus", str(tmp_path / name)]
    result = subprocess.run(gone, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"{name}: must be auto, china-law" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (tmp_path / "corpus").is_dir()


def test_a_step_that_fails_has_the_only_word(tmp_path):
    """The step says what is wrong; the tour ends with its exit code."""
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "short"}\n')
    command = [sys.executable, "-m", "dongwu_jax.quickstart", "--out", str(tmp_path / "tour")]
    result = subprocess.run(
        [*command, "--corpus", str(short)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "too few documents" in result.stderr
    assert result.stderr.count("error") == 1
