"""Two models side by side: what is measured, what is kept, what is printed."""

import json
import os

import pytest
from command_lines import load_tool
from json_lines import write_texts
from reference_models import TOKENIZER_VOCAB, random_llama, save_with_tokenizer

from dongwu_jax.errors import UserError

TEXTS = ["The central bank sells bonds.", "证券法规定，上市公司应当披露。"] * 8


@pytest.fixture
def models(tmp_path):
    """Two random models with a tokenizer, and a file of texts."""
    folders = []
    for name, width in (("before", 0.1), ("after", 0.3)):
        folder = tmp_path / name
        folder.mkdir()
        folders.append(
            save_with_tokenizer(
                random_llama(initializer_range=width, vocab_size=TOKENIZER_VOCAB), folder
            )
        )
    data = tmp_path / "texts.jsonl"
    write_texts(data, TEXTS)
    return *folders, data


@pytest.fixture
def evaluate():
    return load_tool("evaluate").main


def _perplexity(evaluate, model, data, tmp_path, length):
    result = tmp_path / "alone.json"
    arguments = ["--model", str(model), "--data", str(data), "--lengths", str(length)]
    evaluate(["perplexity", *arguments, "--json", str(result)])
    return json.loads(result.read_text())["results"][0]["perplexity"]


def test_perplexities_are_those_of_each_model_alone(models, evaluate, tmp_path, capsys):
    before, after, data = models
    output = tmp_path / "both"
    options = ["--data", str(data), "--lengths", "16,32", "--output", str(output)]
    evaluate(["compare", str(before), str(after), *options])
    printed = capsys.readouterr().out
    found = []
    for name, model in (("a", before), ("b", after)):
        record = json.loads((output / f"{name}.json").read_text())
        assert [result["length"] for result in record["perplexity"][str(data)]] == [16, 32]
        for result in record["perplexity"][str(data)]:
            alone = _perplexity(evaluate, model, data, tmp_path, result["length"])
            assert result["perplexity"] == pytest.approx(alone, rel=1e-6)
            assert f"{alone:,.3f}" in printed
            found.append(result["perplexity"])
    assert len(set(found)) == 4


def test_what_is_known_is_not_measured_again(models, evaluate, tmp_path, monkeypatch, capsys):
    before, after, data = models
    command = ["compare", str(before), str(after), "--data", str(data), "--lengths", "16"]
    command += ["--output", str(tmp_path / "both")]
    evaluate(command)
    first = capsys.readouterr().out
    loaded = []
    original = evaluate.__globals__["_load"]

    def load(options):
        loaded.append(options.model)
        return original(options)

    monkeypatch.setitem(evaluate.__globals__, "_load", load)
    evaluate(command)
    assert capsys.readouterr().out == first
    assert loaded == []
    os.utime(after / "model.safetensors", (1e9, 1e9))  # older than before, as a copy can be
    evaluate(command)
    assert loaded == [after]
    evaluate([*command, "--max-tokens", "50"])
    assert loaded == [after, before, after]
    data.write_text(data.read_text() + data.read_text())
    evaluate([*command, "--max-tokens", "50"])
    assert loaded == [after, before, after, before, after]
    tokenizer = str(before / "tokenizer.model")
    evaluate([*command, "--max-tokens", "50", "--tokenizer", tokenizer])
    assert len(loaded) == 7
    evaluate([*command, "--max-tokens", "50", "--tokenizer", tokenizer, "--stride", "7"])
    assert len(loaded) == 7  # no stride in this protocol


def test_of_two_measures_one_that_is_known_is_kept(models, evaluate, tmp_path, monkeypatch):
    before, after, data = models
    command = ["compare", str(before), str(after), "--lengths", "16", "--data", str(data)]
    command += ["--output", str(tmp_path / "both")]
    evaluate(command)
    record = json.loads((tmp_path / "both/a.json").read_text())
    del record["perplexity"][str(data)]
    (tmp_path / "both/a.json").write_text(json.dumps(record))
    loaded = []
    original = evaluate.__globals__["_load"]
    monkeypatch.setitem(
        evaluate.__globals__, "_load", lambda o: loaded.append(o.model) or original(o)
    )
    evaluate(command)
    assert loaded == [before]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": "nowhere"}, "nowhere"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"fineval": "nowhere"}, "nowhere"),
        ({"output": "texts.jsonl"}, "texts.jsonl"),
    ],
)
def test_what_cannot_be_is_known_before_anything_is_measured(
    models, evaluate, tmp_path, monkeypatch, changes, message
):
    before, after, data = models
    monkeypatch.setitem(evaluate.__globals__, "_load", lambda _: pytest.fail("loaded a model"))
    places = {"b": after, "data": data, "output": "both"} | changes
    command = ["compare", str(before), str(tmp_path / places["b"])]
    command += ["--data", str(tmp_path / places["data"])]
    command += ["--output", str(tmp_path / places["output"])]
    if "fineval" in changes:
        pytest.importorskip("lm_eval")
        command += ["--fineval-data", str(tmp_path / changes["fineval"])]
    with pytest.raises(UserError, match=message):
        evaluate(command)


def test_a_damaged_result_is_measured_again(models, evaluate, tmp_path):
    before, after, data = models
    kept = tmp_path / "both/a.json"
    kept.parent.mkdir()
    kept.write_text('{"model": ')
    command = ["compare", str(before), str(after), "--data", str(data), "--lengths", "16"]
    evaluate([*command, "--output", str(kept.parent)])
    assert json.loads(kept.read_text())["perplexity"]


def test_fineval_of_both_with_the_test_between_them(
    models, evaluate, tmp_path, shared_data, capsys
):
    pytest.importorskip("lm_eval")
    before, after, _ = models
    output = tmp_path / "both"
    options = ["--fineval-data", str(shared_data / "fineval"), "--limit", "1"]
    options += ["--num-fewshot", "0", "--output", str(output)]
    evaluate(["compare", str(before), str(after), *options])
    printed = capsys.readouterr().out
    answers = []
    for name in ("a", "b"):
        fineval = json.loads((output / f"{name}.json").read_text())["fineval"]
        right = [correct for *_, correct in fineval["items"]]
        assert len(right) == 34
        total = fineval["scores"][-1]
        assert (total["name"], total["correct"], total["total"]) == ("All", sum(right), 34)
        assert total["interval"][0] < total["accuracy"] < total["interval"][1]
        answers.append(right)
    only_first = sum(a and not b for a, b in zip(*answers, strict=True))
    only_second = sum(b and not a for a, b in zip(*answers, strict=True))
    assert f"only A right: {only_first} questions, only B: {only_second}" in " ".join(
        printed.split()
    )


def test_something_must_be_compared(models, evaluate, tmp_path):
    before, after, _ = models
    with pytest.raises(UserError, match="--data, --fineval-data"):
        evaluate(["compare", str(before), str(after), "--output", str(tmp_path / "both")])
