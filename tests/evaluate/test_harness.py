"""The harness with our model against the harness with its own Hugging Face backend."""

import json
import logging
import socket
import sys

import jax
import pytest
import torch
from reference_models import TOKENIZER_VOCAB, random_llama, save, train_tiny_tokenizer

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.harness import run_tasks
from dongwu_jax.evaluate.scoring import Scorer
from dongwu_jax.interop.hf_tokenizer import write_hugging_face_tokenizer
from dongwu_jax.interop.inference import load_model

lm_eval = pytest.importorskip("lm_eval")

import datasets  # noqa: E402
import huggingface_hub  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from dongwu_jax.evaluate.harness_model import DongwuLM  # noqa: E402

LENGTH = 64
LONG = "def price(bond):\n    if bond:\n        return  bond.price\n" * 5
CHOICES = [
    ("The central bank", ["sells bonds.", "tightens credit; cash", "x"]),
    ("", ["证券法规定", "rate 4.25 %", "The"]),  # scored without a context
    ("Bonds are ", ["1", "2", "12 %"]),  # its last space belongs to the choices
    (LONG, [" bond", "return bond.price", "\n"]),  # longer than the model
]
TEXTS = ["The central bank sells bonds.", LONG, "证券法规定，\n\n上市公司", "x"]
PROMPTS = ["The central bank", LONG, "证券法", "if bond:\n", "rate 4.25 %", "cash and"]
TASKS = ["tiny_choice", "tiny_rolling", "tiny_free", "tiny_until"]


def _task(folder, name, documents, **settings):
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(data)}},
        "validation_split": "validation",
    } | settings
    (folder / f"{name}.yaml").write_text(json.dumps(config))  # YAML too


@pytest.fixture(scope="module")
def tasks_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    _task(
        folder,
        "tiny_choice",
        [{"text": text, "choices": choices} for text, choices in CHOICES],
        output_type="multiple_choice",
        doc_to_text="{{text}}",
        doc_to_choice="choices",
        doc_to_target=0,
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    _task(
        folder,
        "tiny_rolling",
        [{"text": text} for text in TEXTS],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[
            {"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        ],
    )
    for name, until in {"tiny_free": ["\n\n\n"], "tiny_until": ["\n\n\n", "r", "12"]}.items():
        _task(
            folder,
            name,
            [{"text": text} for text in PROMPTS],
            output_type="generate_until",
            doc_to_text="{{text}}",
            doc_to_target="{{text}}",
            generation_kwargs={"until": until, "max_gen_toks": 24, "do_sample": False},
            metric_list=[{"metric": "exact_match"}],
        )
    _task(
        folder,
        "tiny_unsafe",
        [{"text": "x"}],
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="{{text}}",
        unsafe_code=True,
    )
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A random model that sometimes ends a text, with both kinds of tokenizer."""
    folder = tmp_path_factory.mktemp("exported")
    model = random_llama(vocab_size=TOKENIZER_VOCAB, max_position_embeddings=LENGTH)
    save(model, folder)
    sentencepiece = train_tiny_tokenizer(tmp_path_factory.mktemp("sentencepiece"))
    write_hugging_face_tokenizer(sentencepiece, folder, LENGTH)
    return folder, sentencepiece


@pytest.fixture(scope="module")
def scorer(exported):
    return Scorer(load_model(exported[0], "float32"))


@pytest.fixture(scope="module")
def reference_model(exported):
    return HFLM(str(exported[0]), dtype="float32", device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def reference(reference_model, tasks_folder):
    manager = TaskManager(include_path=tasks_folder, include_defaults=False)
    return lm_eval.simple_evaluate(reference_model, tasks=TASKS, task_manager=manager)


@pytest.fixture(scope="module")
def connections():
    """Where the process connects to, with the libraries' own offline modes off."""
    found = []

    def record(_socket, address):
        found.append(address)
        raise OSError("no network in this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", record)
        patch.setattr(socket, "getaddrinfo", lambda host, *_: record(None, host))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        yield found


@pytest.fixture(scope="module")
def results(scorer, tasks_folder, connections):
    found = run_tasks(scorer, TASKS, include_path=tasks_folder)
    assert not connections
    return found


def _figures(results, tasks):
    """The metrics of each task, and the model's answers to each document."""
    metrics = {
        (task, name): value
        for task in tasks
        for name, value in results["results"][task].items()
        if isinstance(value, float)
    }
    answers = {
        (task, sample["doc_id"]): sample["resps"]
        for task in tasks
        for sample in results["samples"][task]
    }
    return metrics, answers


def _assert_same(ours, theirs, tasks):
    assert list(ours["samples"]) == tasks
    (metrics, answers), (their_metrics, their_answers) = (
        _figures(results, tasks) for results in (ours, theirs)
    )
    assert metrics == pytest.approx(their_metrics, rel=1e-5)
    assert answers.keys() == their_answers.keys()
    for key, responses in answers.items():
        for (response,), (expected,) in zip(responses, their_answers[key], strict=True):
            if isinstance(expected, tuple):
                assert response[0] == pytest.approx(expected[0], rel=1e-5), key
                assert response[1] == expected[1], key
            elif isinstance(expected, float):
                assert response == pytest.approx(expected, rel=1e-5), key
            else:
                assert response == expected, key


def test_tasks_give_the_numbers_of_the_hugging_face_backend(results, reference):
    _assert_same(results, reference, TASKS)
    assert len(_figures(results, TASKS)[0]) >= 8


def test_the_same_from_a_sentencepiece_model(exported, tasks_folder, reference):
    """But for generated bytes that are not UTF-8, which the libraries show differently."""
    folder, sentencepiece = exported
    scorer = Scorer(load_model(folder, "float32", tokenizer=sentencepiece))
    scored = ["tiny_choice", "tiny_rolling"]
    _assert_same(run_tasks(scorer, scored, include_path=tasks_folder), reference, scored)


def test_stop_strings_end_a_text(results):
    free, cut = (
        [sample["resps"][0][0] for sample in results["samples"][task]]
        for task in ("tiny_free", "tiny_until")
    )
    assert free != cut
    for whole, text in zip(free, cut, strict=True):
        assert whole.startswith(text)
        assert "r" not in text
        assert "12" not in text


def test_the_end_token_ends_a_text(exported, tmp_path):
    """The end token takes the place of a token that the model likes to write."""
    folder, sentencepiece = exported
    model = HFLM(str(folder), dtype="float32", device="cpu").model
    ids = torch.tensor([[1, 333, 322]])
    written = model.generate(ids, max_new_tokens=8, do_sample=False)[0, 3:].tolist()
    weights = model.lm_head.weight.data
    weights[2] = 1.01 * weights[written[4]]
    save(model, tmp_path)
    write_hugging_face_tokenizer(sentencepiece, tmp_path, LENGTH)
    requests = _generation(until=["\n\n\n"], max_gen_toks=24)
    theirs = HFLM(str(tmp_path), dtype="float32", device="cpu", batch_size=4)
    expected = theirs.generate_until(requests)
    scorer = Scorer(load_model(tmp_path, "float32"))
    assert DongwuLM(scorer).generate_until(requests) == expected
    lengths = [len(theirs.tok_encode(text)) for text in expected]
    assert min(lengths) < 20


def _generation(**options):
    return [
        Instance("generate_until", {}, (prompt, options), index)
        for index, prompt in enumerate(PROMPTS)
    ]


def test_greedy_continuations_are_recognized(scorer, reference_model):
    """Requests of every kind in one call, whose answers come back in their order."""
    model = reference_model.model
    requests = []
    for start in (7, 30, 99):
        context = [1, start, start + 1]
        greedy = model.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False)
        greedy = greedy[0, len(context) :].tolist()
        other = [*greedy[:-1], (greedy[-1] + 1) % TOKENIZER_VOCAB]
        for continuation in (greedy, other, greedy[:1], [*other, 5]):
            requests.append((("", ""), context, continuation))
    requests.append((("", ""), [1] + [9, 10] * LENGTH, [11, 12]))
    ours = DongwuLM(scorer)._loglikelihood_tokens(requests)
    theirs = reference_model._loglikelihood_tokens(requests)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert sum(greedy for _, greedy in ours) == 6
    assert [value for value, _ in ours] == pytest.approx([v for v, _ in theirs], rel=1e-5)


def test_tokens_are_those_of_the_hugging_face_backend(scorer, reference_model):
    ours = DongwuLM(scorer)
    assert ours.prefix_token_id == reference_model.prefix_token_id == 1
    assert ours.eot_token_id == reference_model.eot_token_id == 2
    for text in [*TEXTS, *PROMPTS, "", " two", "<s> begun"]:
        for special in (None, True, False):
            expected = reference_model.tok_encode(text, add_special_tokens=special)
            assert ours.tok_encode(text, add_special_tokens=special) == expected, (text, special)


def test_a_shorter_length_truncates_as_the_hugging_face_backend(exported, scorer, caplog):
    theirs = HFLM(str(exported[0]), dtype="float32", device="cpu", max_length=16)
    ours = DongwuLM(scorer, 16)
    rolling = [
        Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(TEXTS)
    ]
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(
        theirs.loglikelihood_rolling(rolling), rel=1e-5
    )
    pairs = [
        Instance("loglikelihood", {}, (prompt, " bond"), index)
        for index, prompt in enumerate(PROMPTS)
    ]
    with caplog.at_level(logging.WARNING, "dongwu_jax"):
        values = [value for value, _ in ours.loglikelihood(pairs)]
    assert values == pytest.approx([value for value, _ in theirs.loglikelihood(pairs)], rel=1e-5)
    assert "1 of 6 inputs are longer than max_length=16" in caplog.text
    continued = _generation(until=["\n\n\n"], max_gen_toks=5)
    assert ours.generate_until(continued) == theirs.generate_until(continued)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_several_devices_give_the_same(exported, scorer, fsdp):
    devices = jax.local_devices()[:2]
    several = DongwuLM(Scorer(load_model(exported[0], "float32", devices=devices, fsdp=fsdp)))
    one = DongwuLM(scorer)
    pairs = [
        Instance("loglikelihood", {}, (prompt, " bond"), index)
        for index, prompt in enumerate(PROMPTS[:5])
    ]
    assert [value for value, _ in several.loglikelihood(pairs)] == pytest.approx(
        [value for value, _ in one.loglikelihood(pairs)], rel=1e-5
    )
    requests = _generation(until=["\n\n\n"], max_gen_toks=8)[:5]
    assert several.generate_until(requests) == one.generate_until(requests)


def test_answers_reach_the_cache(scorer):
    found = {}

    class Hook:
        def add_partial(self, kind, request, answer):
            found[kind, json.dumps(request)] = answer

    model = DongwuLM(scorer)
    model.set_cache_hook(Hook())
    generation = _generation(until=["\n\n\n"], max_gen_toks=2)
    pair = Instance("loglikelihood", {}, ("cash", " bond"), 0)
    rolling = Instance("loglikelihood_rolling", {}, ("cash",), 0)
    answers = [
        *(
            (request, text)
            for request, text in zip(generation, model.generate_until(generation), strict=True)
        ),
        (pair, model.loglikelihood([pair])[0]),
        (rolling, model.loglikelihood_rolling([rolling])[0]),
    ]
    assert found == {
        (request.request_type, json.dumps(request.args)): answer for request, answer in answers
    }


def test_sampling_is_repeatable_and_differs_between_equal_requests(scorer):
    model = DongwuLM(scorer)
    options = {"until": ["\n\n\n"], "max_gen_toks": 16, "do_sample": True, "temperature": 0.9}
    requests = [Instance("generate_until", {}, ("cash", options), 0)] * 3
    texts = model.generate_until(requests)
    assert len(set(texts)) == 3
    assert model.generate_until(requests) == texts
    almost_greedy = {**options, "top_p": 1e-6}
    greedy = {"until": ["\n\n\n"], "max_gen_toks": 16}
    (narrow, expected) = (
        model.generate_until([Instance("generate_until", {}, ("cash", kwargs), 0)])
        for kwargs in (almost_greedy, greedy)
    )
    assert narrow == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"do_sample": True, "temperature": 0.5, "top_k": 5}, "top_k=5"),
        ({"do_sample": True}, "temperature=0.0"),
        ({"max_gen_toks": LENGTH}, f"max_gen_toks={LENGTH}"),
    ],
)
def test_decoding_that_is_not_here_is_refused(scorer, options, message):
    with pytest.raises(UserError, match=message):
        DongwuLM(scorer).generate_until(_generation(until=["\n"], **options))


def test_what_cannot_be_scored_is_refused(scorer):
    model = DongwuLM(scorer, 8)
    for continuation in ([], [5] * 9):
        with pytest.raises(UserError, match=f"continuation of {len(continuation)} tokens"):
            model._loglikelihood_tokens([(("", ""), [1], continuation)])
    with pytest.raises(UserError, match="max_length=0"):
        DongwuLM(scorer, 0)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["tiny_choise"], "tiny_choise.*did you mean tiny_choice"),
        ([], "no task is named"),
        (["tiny_unsafe"], "tiny_unsafe.*never run"),
        (["fineval", "fineval_category_finance"], "fineval_category_finance.*once"),
    ],
)
def test_tasks_that_cannot_run_are_explained(scorer, tasks_folder, shared_data, tasks, message):
    metadata = {"fineval_data": str(shared_data / "fineval")}
    with pytest.raises(UserError, match=message):
        run_tasks(scorer, tasks, include_path=tasks_folder, metadata=metadata)


def test_a_folder_without_tasks_is_explained(scorer, tmp_path):
    with pytest.raises(UserError, match="include_path=.*nowhere"):
        run_tasks(scorer, TASKS, include_path=tmp_path / "nowhere")


def test_the_harness_is_named_when_it_is_missing(scorer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="pip install 'dongwu_jax\\[eval\\]'"):
        run_tasks(scorer, TASKS)
