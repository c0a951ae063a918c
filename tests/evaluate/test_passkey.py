"""Pass keys: what the texts hold, what counts as found, against transformers' own generation."""

import importlib.util
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conversions import convert_to
from reference_models import TOKENIZER_VOCAB, random_llama, save_with_tokenizer, smollm2_file

from dongwu_jax.data.tokenizers import load_tokenizer
from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.passkey import even_depths, make_cases, measure
from dongwu_jax.evaluate.scoring import Scorer, Scores
from dongwu_jax.interop.loaded_model import load_model
from dongwu_jax.interop.sources import open_source

TOOL = Path(__file__).parents[2] / "tools/evaluate.py"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return save_with_tokenizer(
        random_llama(vocab_size=TOKENIZER_VOCAB, max_position_embeddings=4096), folder
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_texts_fill_their_length_and_hide_the_key_at_its_depth(exported, language):
    tokenizer = load_tokenizer(exported)
    cases = make_cases(tokenizer, [700, 1500], [0, 0.5, 1], 2, language)
    assert len(cases) == 12
    for case in cases:
        assert 0.85 * case.length < len(case.tokens) <= case.length
        text, key = (
            tokenizer.decode(part.tolist())
            for part in (case.tokens[: case.answer], case.tokens[case.answer :])
        )
        assert key.strip().isdecimal()
        assert text.count(key.strip()) == 2
        sentence = "grass is green" if language == "en" else "草是绿色的"
        before = text.split(key.strip())[0].count(sentence)
        assert before == round(case.depth * text.count(sentence))
    keys = {tuple(case.tokens[case.answer :].tolist()) for case in cases}
    assert len(keys) == 12


def test_the_same_seed_gives_the_same_keys_whatever_else_is_asked(exported):
    tokenizer = load_tokenizer(exported)
    one = make_cases(tokenizer, [700], [0.5], 2, seed=3)
    among = make_cases(tokenizer, [500, 700], [0, 0.5], 4, seed=3)
    again = [case for case in among if (case.length, case.depth) == (700, 0.5)][:2]
    assert [case.tokens.tolist() for case in one] == [case.tokens.tolist() for case in again]
    other = make_cases(tokenizer, [700], [0.5], 2, seed=4)
    assert one[0].tokens.tolist() != other[0].tokens.tolist()


class _Knowing:
    """Stands in for a scorer: what it is told to find likely."""

    def __init__(self, likely):
        self.likely = likely

    def rows_for(self, sequences, length):
        return 2

    def __call__(self, tokens, labels):
        return Scores(np.zeros(labels.shape, np.float32), self.likely(tokens, labels))


def test_a_key_is_found_if_all_its_tokens_are_likeliest(exported):
    tokenizer = load_tokenizer(exported)
    cases = make_cases(tokenizer, [500, 600], [0, 1], 3)
    results = measure(_Knowing(lambda tokens, labels: np.ones(labels.shape, bool)), cases)
    assert [(r.length, r.depth, r.found, r.trials) for r in results] == [
        (500, 0, 3, 3), (500, 1, 3, 3), (600, 0, 3, 3), (600, 1, 3, 3)
    ]  # fmt: skip

    last = {int(case.tokens[-1]) for case in cases if case.length == 500}

    def all_but_the_last(tokens, labels):
        return ~np.isin(labels, list(last))

    results = measure(_Knowing(all_but_the_last), cases)
    assert [r.found for r in results if r.length == 500] == [0, 0]

    def only_the_answers(tokens, labels):
        right = np.zeros(labels.shape, bool)
        for row, label in enumerate(labels):
            for case in cases:
                if np.array_equal(label[: len(case.tokens) - 1], case.tokens[1:]):
                    right[row, case.answer - 1 : len(case.tokens) - 1] = True
        return right

    assert all(r.found == 3 for r in measure(_Knowing(only_the_answers), cases))


def test_too_short_a_length_is_refused(exported):
    with pytest.raises(UserError, match="--lengths 20: key and question alone take"):
        make_cases(load_tokenizer(exported), [20], [0.5], 1)


def test_depths():
    assert even_depths(5) == [0, 0.25, 0.5, 0.75, 1]
    assert even_depths(1) == [0]


def test_the_command_prints_draws_and_records(exported, tmp_path, capsys):
    png, record = tmp_path / "map.png", tmp_path / "map.json"
    main = runpy.run_path(str(TOOL))["main"]
    options = ["--lengths", "600,400", "--depths", "2", "--trials", "2", "--json", str(record)]
    drawn = ["--png", str(png)] if importlib.util.find_spec("matplotlib") else []
    main(["passkey", "--model", str(exported), *options, *drawn])
    assert "pass keys found" in capsys.readouterr().out
    results = json.loads(record.read_text())["results"]
    assert [(r["length"], r["depth"]) for r in results] == [
        (400, 0), (400, 1), (600, 0), (600, 1)
    ]  # fmt: skip
    assert all(r["trials"] == 2 and r["rate"] == r["found"] / 2 for r in results)
    if drawn:
        assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_smollm2_finds_what_transformers_would_write(tmp_path):
    """Keys of the real model: found exactly where greedy generation writes them."""
    folder = convert_to(open_source(smollm2_file()), tmp_path / "hf", "hf")
    model = load_model(folder, "float32")
    cases = make_cases(model.tokenizer, [300], [0, 0.5, 1], 2, "en") + make_cases(
        model.tokenizer, [300], [0, 0.5, 1], 2, "zh"
    )
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    written = []
    for case in cases:
        size = len(case.tokens) - case.answer
        prompt = torch.tensor([case.tokens[: case.answer].tolist()])
        new = reference.generate(prompt, max_new_tokens=size, min_new_tokens=size, do_sample=False)
        written.append(new[0, case.answer :].tolist() == case.tokens[case.answer :].tolist())
    scorer = Scorer(model)
    found = [measure(scorer, [case])[0].found == 1 for case in cases]
    assert found == written
    assert any(found)
    assert not all(found)
