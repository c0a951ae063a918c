"""tools/prune.py --search as a user runs it: what it ranks is what pruning gives."""

import contextlib
import io
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from command_lines import exit_code, failure, load_tool
from reference_models import TOKENIZER_VOCAB, random_llama, save_with_tokenizer

from dongwu_jax.compress.candidates import CLOSEST, candidate_shapes
from dongwu_jax.compress.choosing import choose
from dongwu_jax.compress.importance import Importance
from dongwu_jax.compress.selection import everything
from dongwu_jax.compress.shape_search import kept_importance
from dongwu_jax.compress.shapes import Shape, parse_target
from dongwu_jax.config import ModelConfig
from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter
from dongwu_jax.interop.sources import open_source

prune = load_tool("prune").main
EVALUATE = Path(__file__).parents[2] / "tools/evaluate.py"
SAMPLES, LENGTH = 16, 16
BUDGET = 48_000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model with a tokenizer, and tokens: one document, in an indexed dataset."""
    folder = tmp_path_factory.mktemp("model")
    reference = random_llama(vocab_size=TOKENIZER_VOCAB, num_hidden_layers=4, num_key_value_heads=2)
    tokens = np.random.default_rng(0).integers(3, TOKENIZER_VOCAB, 2 * SAMPLES * LENGTH + 1)
    return save_with_tokenizer(reference, folder), tokens


def _dataset(prefix, tokens):
    with IndexedDatasetWriter(prefix, np.uint16) as writer:
        writer.add_document(tokens.astype(np.uint16), [len(tokens)])
    return prefix


@pytest.fixture(scope="module")
def searched(model, tmp_path_factory):
    """The report of a search for all candidates, and what it prints."""
    folder = tmp_path_factory.mktemp("search")
    report = folder / "search.json"
    arguments = ["--model", model[0], "--calibration", _dataset(folder / "text", model[1])]
    arguments += ["--samples", SAMPLES, "--length", LENGTH, "--search", "48k"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert not exit_code(prune, *arguments, "--candidates", 4, "--report", report)
    return json.loads(report.read_text()), said.getvalue().splitlines(), folder / "text"


def test_candidates_obey_the_rules_and_are_ranked(model, searched):
    report, said, _ = searched
    whole = open_source(model[0]).config
    possible, limits = candidate_shapes(whole, BUDGET)
    targets = [found["target"] for found in report["candidates"]]
    assert len(set(targets)) == len(targets) == min(4, len(possible))
    assert {parse_target(target, whole) for target in targets} <= set(possible)
    assert report["limits"] == {"width": limits.width, "depth": limits.depth}
    for found in report["candidates"]:
        assert CLOSEST * BUDGET <= found["parameters"] <= BUDGET
    perplexities = [found["perplexity"] for found in report["candidates"]]
    assert perplexities == sorted(perplexities)
    assert said[-len(targets) :] == [
        f"{rank}: --target {target}" for rank, target in enumerate(targets, 1)
    ]
    assert "importance from tokens 0 to 255, perplexity of the 256 from 256 on" in "\n".join(said)


def test_the_perplexity_is_that_of_the_pruned_model(model, searched, tmp_path):
    """Pruned by its --target and measured by tools/evaluate.py; the whole model likewise."""
    report, _, text = searched
    best = report["candidates"][0]
    arguments = ["--model", model[0], "--calibration", text, "--samples", SAMPLES]
    arguments += ["--length", LENGTH, "--target", best["target"], "--out", tmp_path / "pruned"]
    assert not exit_code(prune, *arguments)
    rest = _dataset(tmp_path / "rest", model[1][SAMPLES * LENGTH :])
    evaluate = runpy.run_path(str(EVALUATE))["main"]
    for folder, expected in ((tmp_path / "pruned", best), (model[0], report["whole"])):
        result = tmp_path / "result.json"
        options = ["--data", str(rest), "--lengths", str(LENGTH), "--json", str(result)]
        evaluate(["perplexity", "--model", str(folder), *options])
        (measured,) = json.loads(result.read_text())["results"]
        assert measured["tokens"] == SAMPLES * LENGTH
        assert measured["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "pruned"], "--output: leave it out with --search"),
        (["--target", "num_layers=3"], "--target: leave it out with --search"),
        (["--drop-layers", "1"], "--drop-layers: leave it out with --search"),
        (["--method", "random"], "works with --method activation"),
        (["--length", "64"], "has 512 tokens, and --samples 128 of --length 64 on 8 devices need"),
        (
            ["--samples", "7", "--length", "16"],
            "--samples 7: give at least one to each of 8 devices",
        ),
    ],
)
def test_a_search_that_cannot_be_is_explained(model, searched, capsys, options, message):
    arguments = ["--model", model[0], "--calibration", searched[2], "--search", "48k"]
    assert message in failure(capsys, prune, *arguments, *options)


def test_a_search_needs_text(model, capsys):
    said = failure(capsys, prune, "--model", model[0], "--search", "48k")
    assert "needs --calibration" in said


def test_kept_importance_is_a_product_of_shares():
    config = ModelConfig(
        vocab_size=10, hidden_size=8, intermediate_size=4, num_layers=3, num_heads=4,
        num_kv_heads=2, head_dim=2,
    )  # fmt: skip
    scores = Importance(
        blocks=np.array([3.0, -5, 1]),
        hidden=np.arange(8.0),
        mlp=np.tile([1.0, 2, 3, 4], (3, 1)),
        heads=np.tile([1.0, 1, 4, 4], (3, 1)),
        stream=np.ones((7, 8)),
    )
    assert kept_importance(scores, everything(config)) == pytest.approx(1)
    without_the_harmful = choose(scores, Shape(2, 8, 4, 4, 2), config)
    assert kept_importance(scores, without_the_harmful) == pytest.approx(1)
    narrow = choose(scores, Shape(1, 4, 2, 2, 1), config)
    assert kept_importance(scores, narrow) == pytest.approx(
        3 / 4 * (22 / 28) ** 2 * (0.7 + 0.8) / 2
    )
