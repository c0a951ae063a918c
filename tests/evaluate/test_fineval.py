"""FinEval: its files, its prompts and its table."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from command_lines import exit_code, load_tool
from reference_models import TOKENIZER_VOCAB, random_llama, save_with_tokenizer, smollm2_file

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.fineval import (
    CATEGORIES,
    SUBJECTS,
    Score,
    fineval_dataset,
    fineval_table,
    item_results,
    majority_baseline,
    read_questions,
)
from dongwu_jax.evaluate.harness import TASKS_FOLDER, run_tasks, select_tasks
from dongwu_jax.evaluate.scoring import Scorer
from dongwu_jax.evaluate.statistics import mcnemar, wilson_interval
from dongwu_jax.interop.loaded_model import load_model

TAX_LAW = next(subject for subject in SUBJECTS if subject.name == "tax_law")
HEADER = ["id", "question", "A", "B", "C", "D", "answer", "explanation"]
ROWS = [
    [
        str(number),
        f"问题，{number}\n（第二行）",
        "1$\\%$",
        '"甲"',
        "乙",
        "丙",
        "ABCDA"[number],
        "因为",
    ]
    for number in range(5)
]


@pytest.fixture
def fineval(shared_data):
    return shared_data / "fineval"


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_with_tokenizer(random_llama(vocab_size=TOKENIZER_VOCAB), folder)
    return Scorer(load_model(folder, "float32"))


def _write(folder: Path, rows, header=HEADER, encoding="utf-8") -> Path:
    path = folder / "dev" / "tax_law_dev.csv"
    path.parent.mkdir()
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_is_read(tmp_path, encoding):
    _write(tmp_path, ROWS, encoding=encoding)
    questions = read_questions(tmp_path, TAX_LAW, "dev")
    assert [list(question.values()) for question in questions] == [
        [*row[:7], "tax_law"] for row in ROWS
    ]
    assert list(questions[0]) == ["id", "question", "A", "B", "C", "D", "answer", "subject"]


def _changed(column, value):
    changed = [list(row) for row in ROWS]
    changed[2][HEADER.index(column)] = value
    return changed


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (ROWS[:4], HEADER, "holds 4 questions, FinEval has 5"),
        ([*ROWS, ROWS[0]], HEADER, "holds 6 questions, FinEval has 5"),
        ([], HEADER, "holds 0 questions, FinEval has 5"),
        (_changed("answer", "E"), HEADER, "question 3: answer=E"),
        (_changed("C", " "), HEADER, "question 3: C is empty"),
        ([*ROWS[:4], ROWS[4][:5]], HEADER, "question 5: D is empty"),
        (ROWS, [*HEADER[:6], "key", "explanation"], "has no column answer"),
    ],
)
def test_a_file_with_other_content_is_explained(tmp_path, rows, header, message):
    path = _write(tmp_path, rows, header)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        read_questions(tmp_path, TAX_LAW, "dev")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: path.write_bytes(b""), "is empty; unpack"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3] + b"\xff"), "is not UTF-8"),
        (lambda path: path.write_bytes(path.read_bytes() + b'5,"cut'), "line .*unexpected end"),
    ],
)
def test_a_damaged_file_is_explained(tmp_path, damage, message):
    path = _write(tmp_path, ROWS)
    damage(path)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        read_questions(tmp_path, TAX_LAW, "dev")


def test_validation_files_have_their_own_counts(tmp_path, fineval):
    shutil.copytree(fineval / "val", tmp_path / "val")
    path = tmp_path / "val" / "tax_law_val.csv"
    path.chmod(0o644)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(UserError, match=f"{path}: holds 44 questions, FinEval has 45"):
        read_questions(tmp_path, TAX_LAW, "val")


def test_the_table_of_subjects_is_that_of_the_release(fineval):
    mapping = json.loads((fineval / "subject_mapping.json").read_text(encoding="utf-8"))
    assert mapping == {
        subject.name: [subject.name, subject.chinese, subject.category] for subject in SUBJECTS
    }
    counts = [len(read_questions(fineval, subject, "val")) for subject in SUBJECTS]
    assert sum(counts) == 1151
    for subject in SUBJECTS:
        assert len(read_questions(fineval, subject, "dev")) == 5


def test_always_the_same_answer(fineval):
    samples = {
        f"fineval_{subject.name}": [
            {"doc": question} for question in read_questions(fineval, subject, "val")
        ]
        for subject in SUBJECTS
    }
    baseline = majority_baseline(samples)
    assert baseline == Score("always C", 312, 1151)
    assert round(100 * baseline.accuracy, 1) == 27.1


def _samples(subject, results, answer="B"):
    return [
        {"doc": {"subject": subject, "answer": answer}, "doc_id": number, "acc": float(correct)}
        for number, correct in enumerate(results)
    ]


SAMPLES = {
    "fineval_category_finance::fineval_finance": _samples("finance", [1, 0, 1]),
    "fineval_category_finance::fineval_insurance": _samples("insurance", [0, 0, 0, 0, 1], "D"),
    "fineval_category_economy::fineval_statistics": _samples("statistics", [1]),
    "hellaswag": [{"doc": {"text": "x"}, "doc_id": 0, "acc": 1.0}],
}


def test_the_table_counts_questions():
    economy, finance, everything = fineval_table(SAMPLES)
    assert economy == Score("Economy", 1, 1)
    assert finance == Score("Finance", 3, 8)
    assert everything == Score("All", 4, 9)
    assert everything.accuracy == 4 / 9
    assert everything.interval == wilson_interval(4, 9)
    assert majority_baseline(SAMPLES) == Score("always D", 5, 9)


def test_items_are_named_by_subject_and_number():
    assert item_results(SAMPLES) == {
        **{("finance", number): right for number, right in enumerate([True, False, True])},
        **{("insurance", number): number == 4 for number in range(5)},
        ("statistics", 0): True,
    }


@pytest.mark.parametrize("function", [item_results, fineval_table, majority_baseline])
def test_results_of_other_tasks_are_refused(function):
    with pytest.raises(UserError, match="run the task fineval"):
        function({"hellaswag": SAMPLES["hellaswag"]})


def test_task_files_name_the_subjects_of_the_table():
    folder = TASKS_FOLDER / "fineval"
    members = {}
    for category in CATEGORIES:
        group = yaml.safe_load((folder / f"{category.lower()}.yaml").read_text(encoding="utf-8"))
        assert group["group_alias"] == category
        members[group["group"]] = group["task"]
        expected = [subject.name for subject in SUBJECTS if subject.category == category]
        assert [task["dataset_kwargs"]["subject"] for task in group["task"]] == expected
        assert [task["task"] for task in group["task"]] == [f"fineval_{name}" for name in expected]
        assert [task["task_alias"] for task in group["task"]] == expected
    assert yaml.safe_load((folder / "fineval.yaml").read_text())["task"] == list(members)


@pytest.mark.parametrize(
    ("data", "message"), [(None, "as fineval_data"), ("nowhere", "fineval_data=nowhere")]
)
def test_the_folder_must_be_named(data, message):
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError, match=message):
        fineval_dataset("finance", data)


def _prompt(fineval, subject, shots, question):
    def shown(row, answer):
        choices = "".join(f"{letter}. {row[letter]}\n" for letter in "ABCD")
        return f"{row['question']}\n{choices}答案：{answer}"

    examples = read_questions(fineval, subject, "dev")[:shots]
    return (
        f"以下是中国关于{subject.name}考试的单项选择题，请选出其中的正确答案。\n\n"
        + "".join(shown(row, row["answer"]) + "\n\n" for row in examples)
        + shown(question, "")
    )


def _run(scorer, fineval, **options):
    tasks = select_tasks(["fineval"], metadata={"fineval_data": str(fineval)})
    return run_tasks(scorer, tasks, **options)


@pytest.mark.parametrize(("num_fewshot", "shots"), [(None, 5), (0, 0)])
def test_prompts_are_the_official_ones(scorer, fineval, num_fewshot, shots):
    pytest.importorskip("lm_eval")
    results = _run(scorer, fineval, limit=1, num_fewshot=num_fewshot)
    for subject in SUBJECTS:
        task = f"fineval_category_{subject.category.lower()}::fineval_{subject.name}"
        (sample,) = results["samples"][task]
        question = read_questions(fineval, subject, "val")[0]
        prompt = _prompt(fineval, subject, shots, question)
        assert sample["arguments"] == [(prompt, letter) for letter in "ABCD"]
        assert sample["target"] == "ABCD".index(question["answer"])
    assert len(results["samples"]) == len(SUBJECTS)


def test_groups_weigh_every_question_the_same(scorer, fineval):
    pytest.importorskip("lm_eval")
    results = _run(scorer, fineval, limit=0.1, num_fewshot=0)
    scores = {score.name: score for score in fineval_table(results["samples"])}
    by_subject = [
        sum(sample["acc"] for sample in samples) / len(samples)
        for samples in results["samples"].values()
    ]
    accuracy = results["results"]["fineval"]["acc,none"]
    assert accuracy == pytest.approx(scores["All"].accuracy, abs=1e-12)
    assert accuracy != pytest.approx(sum(by_subject) / len(by_subject), abs=1e-6)
    for category in CATEGORIES:
        group = results["results"][f"fineval_category_{category.lower()}"]
        assert group["acc,none"] == pytest.approx(scores[category].accuracy, abs=1e-12)
    likelihoods = [
        (sample["resps"], sample["acc"], sample["target"])
        for samples in results["samples"].values()
        for sample in samples
    ]
    for responses, accuracy, target in likelihoods:
        values = [response[0][0] for response in responses]
        assert accuracy == float(values.index(max(values)) == target)


@pytest.mark.slow
def test_a_real_model_answers_as_by_the_hugging_face_backend(fineval, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = tmp_path / "hf"
    source = ["--from", smollm2_file(), "--to", folder, "--to-format", "hf"]
    assert not exit_code(load_tool("convert").main, *source)
    manager = TaskManager(
        include_path=TASKS_FOLDER,
        include_defaults=False,
        metadata={"fineval_data": str(fineval)},
    )
    options = {"num_fewshot": 0, "limit": 1}
    theirs = lm_eval.simple_evaluate(
        HFLM(str(folder), dtype="float32", device="cpu", batch_size=4),
        tasks=["fineval"],
        task_manager=manager,
        **options,
    )
    ours = _run(Scorer(load_model(folder, "float32")), fineval, **options)
    for task, samples in ours["samples"].items():
        for sample, expected in zip(samples, theirs["samples"][task], strict=True):
            assert sample["arguments"] == expected["arguments"]
            for (response,), (their_response,) in zip(
                sample["resps"], expected["resps"], strict=True
            ):
                assert response[0] == pytest.approx(their_response[0], rel=1e-4)
                assert response[1] == their_response[1]
    first, second = (item_results(results["samples"]) for results in (ours, theirs))
    assert first == second
    assert len(first) == len(SUBJECTS)
    assert mcnemar(first, second).p_value == 1.0
    assert ours["results"]["fineval"]["acc,none"] == theirs["results"]["fineval"]["acc,none"]
