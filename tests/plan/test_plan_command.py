"""`python -m dongwu_jax.plan` as a user runs it, on virtual CPU devices."""

import json
from pathlib import Path

import pytest
import yaml
from command_lines import exit_code, failure
from runs import BASE

from dongwu_jax.plan.__main__ import main


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run whose data, tokenizer and checkpoints are nowhere."""
    path = tmp_path / "run.yaml"
    settings = BASE | {"data": BASE["data"] | {"blend": "nowhere/text", "tokenizer": "nowhere"}}
    path.write_text(yaml.safe_dump(settings))
    return path


def _plan(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert exit_code(main, "--backend", "cpu", *arguments) == 0
    return capsys.readouterr().out


def test_every_figure_as_json(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", run_file, "--devices", 8, "mesh.fsdp=4", "mesh.data=2", "--json"]
    plan = json.loads(_plan(capsys, *arguments, "model.num_layers=6"))
    assert plan["mesh"] == {"pipe": 1, "data": 2, "fsdp": 4, "context": 1, "tensor": 1}
    assert plan["fits"]
    assert plan["compiled"]["backend"] == "cpu"
    assert plan["compiled"]["loops_known"]
    assert plan["step_time"]["total"] > plan["step_time"]["matmul"] > 0
    # Of 6 layers, from models of 2 and 3: 7 matrices a layer, and the head.
    calls = {(total["kind"], *total["axes"]): total["calls"] for total in plan["collectives"]}
    assert calls["reduce-scatter", "fsdp"] == 6 * 7 + 1
    batch_bytes = 3 * 4 * 16 * 32 // 8
    state = plan["memory_estimate"]["state"]
    assert plan["compiled"]["argument_bytes"] == pytest.approx(state + batch_bytes, rel=0.01)


def test_a_report_that_says_what_it_assumes(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = _plan(capsys, "--config", run_file, "--devices", 2, "--gpu", "a100", "mesh.tensor=2")
    report = " ".join(report.split())
    for expected in (
        "A100 80 GB: tensor 2",
        "fits: 0.0 GiB (closed form) of 71.2 GiB",
        "reduce-scatter",
        "tokens a day on 8 GPUs",
        "by V3",
        "virtual CPU devices",
        "pip install 'dongwu_jax[plan]'",
        "185 TFLOP/s",
    ):
        assert expected in report


def test_a_search_ranks_what_it_compiled(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", run_file, "--devices", 4, "--search", "--compile", 2]
    assert exit_code(main, "--backend", "cpu", *arguments, "--json") == 0
    captured = capsys.readouterr()
    plans = json.loads(captured.out)
    assert len(plans) == 2
    for plan in plans:  # said as soon as each was compiled
        assert f"compiled, fits: {' '.join(plan['overrides'])}" in captured.err
    assert "compiling until 2 do, at most 6" in captured.err
    seconds = [plan["step_time"]["total"] for plan in plans]
    assert seconds == sorted(seconds)


def test_what_cannot_be_planned(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*arguments: object) -> str:
        return failure(capsys, main, "--config", run_file, "--backend", "cpu", *arguments)

    assert "--gpu v100: unknown GPU" in message("--devices", 8, "--gpu", "v100")
    assert "mesh: pipe x fsdp x context x tensor = 3" in message("--devices", 8, "mesh.fsdp=3")
    assert "num_heads=4 is not divisible" in message("--devices", 8, "mesh.tensor=8")
    weights = "training.initial_weights=nowhere/weights"
    assert "mesh: " in message("--devices", 8, "mesh.fsdp=3", weights)


def test_how_many_to_compile_is_for_a_search(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(main, "--config", run_file, "--devices", 8, "--compile", 2) == 2
    assert "--compile: only with --search" in capsys.readouterr().err


def test_a_model_that_is_not_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("training: {initial_weights: nowhere/weights}")
    message = failure(capsys, main, "--config", path, "--devices", 8)
    assert "the model comes with nowhere/weights, which is not here" in message
