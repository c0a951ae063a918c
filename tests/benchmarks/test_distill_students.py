"""benchmarks/distill_students.py: students that differ in their text alone, and their figures."""

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_lines import exit_code, load_script, load_tool
from harness_tasks import write_tasks
from json_lines import write_texts
from reference_models import TOKENIZER_VOCAB, random_llama, save_with_tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEXTS = [
    "The central bank sells bonds; cash and credit tighten.",
    "证券法规定，上市公司应当披露。",
    "rate 4.25 %, a bond of ten years, its price",
]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_script(BENCHMARKS / "distill_students.py")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    return save_with_tokenizer(random_llama(vocab_size=TOKENIZER_VOCAB), folder)


def test_figures_are_those_of_the_evaluation_command(student, tmp_path):
    measure = load_script(BENCHMARKS / "measure_model.py").main
    evaluate = load_tool("evaluate").main
    held_out = write_texts(tmp_path / "held_out.jsonl", TEXTS * 6)
    other = write_texts(tmp_path / "other.jsonl", TEXTS[1:] * 3)
    found, alone = tmp_path / "found.json", tmp_path / "alone.json"
    options = ["--length", 16, "--held-out", held_out, other, "--json", found]
    assert not exit_code(measure, "--model", student, *options)
    record = json.loads(found.read_text())
    for text in (held_out, other):
        options = ["--data", text, "--lengths", 16, "--json", alone]
        assert not exit_code(evaluate, "perplexity", "--model", student, *options)
        expected = json.loads(alone.read_text())["results"][0]
        for name in ("tokens", "perplexity", "bits_per_byte"):
            assert record["perplexity"][text.stem][name] == pytest.approx(expected[name], rel=1e-6)


def test_kinds_are_compared_seed_by_seed(benchmark):
    """Seeds differ by more than the kinds; the differences do not."""
    values = {"original": (10.0, 20.0), "blend": (9.5, 19.0), "control": (9.75, 19.25)}
    found = {
        benchmark._Case(kind, seed): {"perplexity_a": value, "tokens_per_second": 7}
        for kind, pair in values.items()
        for seed, value in enumerate(pair)
    }
    del found[benchmark._Case("control", 0)]  # failed
    lines = {line["case"]: line for line in benchmark.summary(found)}
    assert lines["original"]["perplexity_a"] == 15
    assert lines["original"]["perplexity_a_deviation"] == pytest.approx(10 / math.sqrt(2))
    assert lines["control"] == {
        "case": "control",
        "seeds": 1,
        "perplexity_a": 19.25,
        "tokens_per_second": 7,
    }
    assert lines["blend - original"] == {
        "case": "blend - original",
        "seeds": 2,
        "perplexity_a": -0.75,
        "perplexity_a_deviation": pytest.approx(statistics.stdev([-0.5, -1.0])),
    }
    assert lines["blend - control"]["perplexity_a"] == -0.25
    assert lines["blend - control"]["seeds"] == 1


@pytest.mark.slow
def test_students_see_as_many_tokens_of_other_text(student, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    documents = write_texts(tmp_path / "documents.jsonl", TEXTS[:1] * 40)
    write_texts(corpus / "text.jsonl", TEXTS[1:2] * 10)
    write_texts(corpus / "control.jsonl", TEXTS[2:] * 10)
    # Each held-out text is what one kind alone is trained on.
    held_out = [write_texts(tmp_path / f"{n}.jsonl", [t] * 20) for n, t in enumerate(TEXTS)]
    settings = {
        "precision": {"compute_dtype": "float32"},
        "data": {"sequence_length": 32, "split": "100,0,0"},
        "training": {"global_batch_size": 4},
        "optimizer": {"learning_rate": 1e-2},
        "schedule": {"warmup": 2},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, BENCHMARKS / "distill_students.py", "--student", student]
    command += ["--documents", documents, "--corpus", corpus, "--held-out", *held_out]
    command += ["--tokens", "5120", "--seeds", "1", "--length", "32", "--config", config]
    command += ["--tokenizer-type", "Llama2Tokenizer", "--output", tmp_path / "out"]
    write_tasks(tmp_path)
    command += ["--tasks", "tiny_choice", "--include-path", tmp_path]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    cases = {line["case"]: line for line in lines if "seed" in line or line["case"] == "before"}
    assert set(cases) == {"before", "original", "blend", "control"}
    for kind in ("original", "blend", "control"):
        metrics = (tmp_path / f"out/{kind}_1/metrics.jsonl").read_text().splitlines()
        assert max(json.loads(line)["step"] for line in metrics) == 40
    for number, kind in enumerate(("original", "blend", "control")):
        best = min(cases, key=lambda case: cases[case][f"perplexity_{number}"])
        assert best == kind
    alone = tmp_path / "alone.json"
    options = ["--tasks", "tiny_choice", "--include-path", tmp_path, "--json", alone]
    assert not exit_code(load_tool("evaluate").main, "harness", "--model", student, *options)
    expected = json.loads(alone.read_text())["results"]["tiny_choice"]["acc,none"]
    assert cases["before"]["tiny_choice_acc"] == pytest.approx(expected, abs=1e-4)
    tokens = (tmp_path / "out/data/synthetic_text_document.bin").stat().st_size // 2
    assert cases["blend"]["times_seen"]["synthetic"] == round(5120 / 3 / tokens, 2)
