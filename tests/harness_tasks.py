"""Tasks for lm-evaluation-harness that need no network, and how results are compared."""

import json

import pytest
from json_lines import write_lines

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


def write_task(folder, name, documents, **settings):
    """A task and its data."""
    data = write_lines(folder / f"{name}.jsonl", documents)
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(data)}},
        "validation_split": "validation",
    } | settings
    (folder / f"{name}.yaml").write_text(json.dumps(config))  # YAML too


def write_tasks(folder):
    """The files of TASKS, and of a task that would run what the model writes."""
    write_task(
        folder,
        "tiny_choice",
        [{"text": text, "choices": choices} for text, choices in CHOICES],
        output_type="multiple_choice",
        doc_to_text="{{text}}",
        doc_to_choice="choices",
        doc_to_target=0,
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    write_task(
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
        write_task(
            folder,
            name,
            [{"text": text} for text in PROMPTS],
            output_type="generate_until",
            doc_to_text="{{text}}",
            doc_to_target="{{text}}",
            generation_kwargs={"until": until, "max_gen_toks": 24, "do_sample": False},
            metric_list=[{"metric": "exact_match"}],
        )
    write_task(
        folder,
        "tiny_unsafe",
        [{"text": "x"}],
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="{{text}}",
        unsafe_code=True,
    )


def figures(results, tasks):
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


def assert_same(ours, theirs, tasks, rel=1e-5):
    """Whether two models of a harness gave the same answers and metrics."""
    assert list(ours["samples"]) == tasks
    (metrics, answers), (their_metrics, their_answers) = (
        figures(results, tasks) for results in (ours, theirs)
    )
    assert metrics == pytest.approx(their_metrics, rel=rel)
    assert answers.keys() == their_answers.keys()
    for key, responses in answers.items():
        for (response,), (expected,) in zip(responses, their_answers[key], strict=True):
            if isinstance(expected, tuple):
                assert response[0] == pytest.approx(expected[0], rel=rel), key
                assert response[1] == expected[1], key
            elif isinstance(expected, float):
                assert response == pytest.approx(expected, rel=rel), key
            else:
                assert response == expected, key
