"""tools/prune.py as a user runs it."""

import json
import shutil

import numpy as np
import pytest
import transformers
from command_lines import exit_code, failure, load_tool
from reference_models import (
    TOKENIZER_VOCAB,
    change_weights,
    random_llama,
    save_with_tokenizer,
    transformers_logits,
)
from safetensors.numpy import load_file

prune = load_tool("prune").main
TARGET = "num_layers=3,hidden_size=24,intermediate_size=40,num_heads=2,num_kv_heads=1"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model with a tokenizer, and text."""
    folder = tmp_path_factory.mktemp("model")
    reference = random_llama(vocab_size=TOKENIZER_VOCAB, num_hidden_layers=4, num_key_value_heads=2)
    text = folder / "text.jsonl"
    line = json.dumps({"text": "The central bank sells bonds; cash and credit tighten."})
    text.write_text(f"{line}\n" * 40)
    return save_with_tokenizer(reference, folder), text


@pytest.mark.parametrize("method", ["activation", "magnitude", "random"])
def test_the_result_is_an_ordinary_model(model, tmp_path, method, capsys):
    folder, text = model
    options = ["--model", folder, "--out", tmp_path / "out", "--method", method]
    options += ["--target", TARGET, "--calibration", text, "--samples", 16, "--length", 16]
    assert not exit_code(prune, *options)
    assert "parameters" in capsys.readouterr().out
    pruned = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    config = pruned.config
    assert (config.num_hidden_layers, config.hidden_size) == (3, 24)
    assert (config.intermediate_size, config.num_attention_heads) == (40, 2)
    assert (config.num_key_value_heads, config.head_dim) == (1, 8)
    tokens = np.random.default_rng(0).integers(TOKENIZER_VOCAB, size=(1, 9))
    assert np.isfinite(transformers_logits(pruned, tokens)).all()
    assert (tmp_path / "out/tokenizer.model").is_file()


def test_a_rehearsal_writes_nothing(model, tmp_path, capsys):
    options = ["--model", model[0], "--out", tmp_path / "out", "--method", "magnitude"]
    assert not exit_code(prune, *options, "--drop-layers", "1,2", "--dry-run")
    assert "layers left out: 1, 2" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_layers_can_go_by_the_loss_and_a_report_says_what_is_kept(model, tmp_path):
    folder, text = model
    out, report = tmp_path / "out", tmp_path / "out.prune.json"
    options = ["--model", folder, "--out", out, "--calibration", text, "--report", report]
    options += ["--samples", 16, "--length", 16, "--layer-importance", "perplexity"]
    target = "num_layers=2,intermediate_size=40,hidden_size=24,num_heads=2,num_kv_heads=1"
    assert not exit_code(prune, *options, "--target", target)
    written = json.loads(report.read_text())
    kept, scores = written["kept"], written["layer_scores"]
    layers = [block["layer"] for block in kept["blocks"]]
    assert layers == sorted(sorted(range(4), key=lambda layer: scores[layer])[2:])
    assert (written["method"], written["layer_importance"]) == ("activation", "perplexity")
    assert written["calibration"]["samples"] == 16
    assert written["after"]["hidden_size"] == 24
    pruned = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert written["after"]["parameters"] == pruned.num_parameters()
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert written["before"]["parameters"] == whole.num_parameters()
    for number, block in enumerate(kept["blocks"]):
        rows, columns = _numbers(block["mlp"]), _numbers(kept["hidden"])
        expected = whole.model.layers[block["layer"]].mlp.up_proj.weight[rows][:, columns]
        assert (pruned.model.layers[number].mlp.up_proj.weight == expected).all()
    # Again, in place of what is there: a report beside it does not make it another thing.
    assert not exit_code(prune, *options, "--target", target, "--overwrite")


def _numbers(ranges):
    """What a report says in few words."""
    runs = [[int(end) for end in run.split("-")] for run in ranges.split(",")]
    return [number for run in runs for number in range(run[0], run[-1] + 1)]


def test_a_rehearsal_can_be_reported(model, tmp_path):
    report = tmp_path / "random.json"
    options = ["--model", model[0], "--out", tmp_path / "out", "--method", "random", "--seed", 3]
    assert not exit_code(prune, *options, "--target", TARGET, "--dry-run", "--report", report)
    written = json.loads(report.read_text())
    assert (written["method"], written["seed"]) == ("random", 3)
    assert "calibration" not in written
    assert len(_numbers(written["kept"]["hidden"])) == 24
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--target", "hidden_size=24"],
        ["--drop-layers", "1"],
        ["--target", "num_layers=3", "--method", "magnitude"],
    ],
)
def test_layer_importance_that_decides_nothing_is_refused(model, tmp_path, capsys, options):
    place = ["--model", model[0], "--out", tmp_path / "out", "--calibration", model[1]]
    said = failure(capsys, prune, *place, *options, "--layer-importance", "perplexity")
    assert "--layer-importance perplexity: has nothing to choose" in said


def test_the_place_of_the_result_and_of_the_report_is_checked_first(model, tmp_path, capsys):
    options = ["--model", model[0], "--target", TARGET, "--calibration", tmp_path / "no_text"]
    said = failure(capsys, prune, *options)
    assert "--output: name the folder to write, or give --search" in said
    report = tmp_path / "out/report.json"
    said = failure(capsys, prune, *options, "--out", tmp_path / "out", "--report", report)
    assert f"--report {report}: lies inside of {tmp_path / 'out'}" in said
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    said = failure(capsys, prune, *options, "--out", tmp_path / "out")
    assert "exists already" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "num_layers=3"], "needs --calibration"),
        (["--drop-layers", "4"], "--drop-layers 4: the model's layers are 0 to 3"),
        (["--drop-layers", "1", "--target", "num_layers=3"], "leave num_layers out"),
        (["--drop-layers", "0,1,2,3"], "leaves no layer"),
        (["--target", "hidden_size=23"], "hidden_size=23: is not a multiple of num_heads=4"),
    ],
)
def test_what_cannot_be_cut_is_explained(model, tmp_path, capsys, options, message):
    method = ["--method", "activation" if "calibration" in message else "random"]
    place = ["--model", model[0], "--out", tmp_path / "out"]
    assert message in failure(capsys, prune, *place, *method, *options)


def test_text_that_is_too_short_is_explained(model, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("cash and credit")
    options = ["--model", model[0], "--out", tmp_path / "out", "--calibration", text]
    said = failure(capsys, prune, *options, "--target", "num_layers=3", "--length", "64")
    assert "on 8 devices need at least 512" in said


def _changed(model, folder, change):
    """A copy of the model with some weights changed, and the text."""
    shutil.copytree(model[0], folder)
    change_weights(folder, change)
    return folder, model[1]


def test_a_gain_of_zero_stays_a_number(model, tmp_path):
    name = "model.layers.1.input_layernorm.weight"

    def silence(weights):
        weights[name][3] = 0

    folder, text = _changed(model, tmp_path / "in", silence)
    options = ["--model", folder, "--calibration", text, "--samples", 16, "--length", 16]
    assert not exit_code(prune, *options, "--drop-layers", "3", "--out", tmp_path / "depth")
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "depth"))
    np.testing.assert_array_equal(after[name], before[name])  # no channel went, so none is scaled
    assert not exit_code(prune, *options, "--target", TARGET, "--out", tmp_path / "width")
    for values in load_file(tmp_path / "width" / "model.safetensors").values():
        assert np.isfinite(values).all()


@pytest.mark.parametrize("method", ["activation", "magnitude"])
def test_a_model_with_a_weight_that_is_no_number_is_refused(model, tmp_path, capsys, method):
    def spoil(weights):
        weights["model.layers.2.mlp.down_proj.weight"][0, 0] = np.nan

    folder, text = _changed(model, tmp_path / "in", spoil)
    options = ["--model", folder, "--calibration", text, "--samples", 16, "--length", 16]
    options += ["--method", method, "--target", TARGET, "--out", tmp_path / "out"]
    assert exit_code(prune, *options) == 1
    assert "has weights that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_is_never_replaced_by_its_own_part(model, tmp_path, capsys):
    folder, _ = _changed(model, tmp_path / "in", lambda weights: None)
    options = ["--model", folder, "--out", folder, "--overwrite", "--method", "random"]
    assert "is the model itself" in failure(capsys, prune, *options, "--drop-layers", "1")


def test_longer_text_than_the_model_is_meant_for_is_refused(model, tmp_path, capsys):
    options = ["--model", model[0], "--calibration", model[1], "--length", 65, "--samples", 8]
    message = failure(capsys, prune, *options, "--out", tmp_path / "out", "--target", TARGET)
    assert "is meant for 64 tokens" in message
