"""FinEval (Zhang et al. 2023): questions of Chinese finance examinations, and scores of models.

Only the validation questions can be scored: the answers of the test questions are not public.
Scores are over questions, not over subjects, as in the official code. The prompts are in
`tasks/fineval`, for the harness.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.statistics import wilson_interval
from dongwu_jax.input_files import read_small_file

if TYPE_CHECKING:
    import datasets

CHOICES = ("A", "B", "C", "D")
DEV_QUESTIONS = 5  # of each subject; the examples of the prompts
_COLUMNS = ("id", "question", *CHOICES, "answer")
_TASK_PREFIX = "fineval_"
_UNPACK_AGAIN = "unpack the release again, with bsdtar (other tools leave files of a .rar empty)"

Split = Literal["dev", "val"]
Samples = Mapping[str, Sequence[Mapping[str, Any]]]  # of each task, as the harness logs them


@dataclass(frozen=True)
class Subject:
    """One examination.

    Attributes:
        name: in the names of files, and in the prompt.
        validation: number of questions.
    """

    name: str
    chinese: str
    category: str
    validation: int


SUBJECTS = (
    Subject("accounting", "会计", "Accounting", 36),
    Subject("advanced_financial_accounting", "高级财务会计", "Accounting", 21),
    Subject("auditing", "审计学", "Accounting", 32),
    Subject("corporate_strategy_and_risk_management", "公司战略与风险管理", "Accounting", 33),
    Subject("cost_accounting", "成本会计学", "Accounting", 34),
    Subject("economic_law", "经济法", "Accounting", 25),
    Subject("financial_management", "财务管理学", "Accounting", 24),
    Subject("intermediate_financial_accounting", "中级财务会计", "Accounting", 26),
    Subject("management_accounting", "管理会计学", "Accounting", 29),
    Subject("tax_law", "税法", "Accounting", 45),
    Subject("banking_practitioner_qualification_certificate", "银行从业资格证", "Certificate", 116),
    Subject("certified_management_accountant", "管理会计师", "Certificate", 18),
    Subject("certified_practising_accountant", "注册会计师", "Certificate", 34),
    Subject("china_actuary", "中国精算师", "Certificate", 37),
    Subject("fund_qualification_certificate", "基金从业资格证", "Certificate", 68),
    Subject("futures_practitioner_qualification_certificate", "期货从业资格证", "Certificate", 39),
    Subject(
        "securities_practitioner_qualification_certificate", "证券从业资格证", "Certificate", 22
    ),
    Subject("econometrics", "计量经济学", "Economy", 18),
    Subject("international_economics", "国际经济学", "Economy", 20),
    Subject("macroeconomics", "宏观经济学", "Economy", 31),
    Subject("microeconomics", "微观经济学", "Economy", 40),
    Subject("political_economy", "政治经济学", "Economy", 23),
    Subject("public_finance", "财政学", "Economy", 40),
    Subject("statistics", "统计学", "Economy", 35),
    Subject("central_banking", "中央银行学", "Finance", 28),
    Subject("commercial_bank_finance", "商业银行金融学", "Finance", 20),
    Subject("corporate_finance", "公司金融学", "Finance", 36),
    Subject("finance", "金融学", "Finance", 25),
    Subject("financial_engineering", "金融工程学", "Finance", 26),
    Subject("financial_markets", "金融市场学", "Finance", 39),
    Subject("insurance", "保险学", "Finance", 33),
    Subject("international_finance", "国际金融学", "Finance", 17),
    Subject("investments", "投资学", "Finance", 38),
    Subject("monetary_finance", "货币金融学", "Finance", 43),
)
CATEGORIES = tuple(dict.fromkeys(subject.category for subject in SUBJECTS))
_BY_NAME = {subject.name: subject for subject in SUBJECTS}


@dataclass(frozen=True)
class Score:
    """Correct answers to some questions.

    Attributes:
        name: of a category, "All", or of what answers.
    """

    name: str
    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """As a fraction."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the accuracy."""
        return wilson_interval(self.correct, self.total)


def as_record(score: Score) -> dict[str, Any]:
    """What is written to a file."""
    low, high = score.interval
    counts = {"name": score.name, "correct": score.correct, "total": score.total}
    return counts | {"accuracy": score.accuracy, "interval": [low, high]}


def read_questions(folder: Path, subject: Subject, split: Split) -> list[dict[str, str]]:
    """The questions of one CSV file, in its order.

    Args:
        folder: holds the folders `dev` and `val` of the release.

    Returns:
        The columns id, question, A, B, C, D and answer of each, and its subject.

    Raises:
        UserError: the file is missing or damaged, or some questions are.
    """
    path = folder / split / f"{subject.name}_{split}.csv"
    questions = [
        _checked(path, number, row) | {"subject": subject.name}
        for number, row in enumerate(_read_rows(path), 1)
    ]
    expected = DEV_QUESTIONS if split == "dev" else subject.validation
    if len(questions) != expected:
        raise UserError(
            f"{path}: holds {len(questions)} questions, FinEval has {expected} of them; "
            f"{_UNPACK_AGAIN}"
        )
    return questions


def fineval_dataset(
    subject: str, fineval_data: str | None = None, **metadata: object
) -> "datasets.DatasetDict":
    """A subject for the harness, which calls this for each task of `tasks/fineval`.

    Args:
        fineval_data: the user's folder, from the harness's metadata.
        metadata: of other tasks.

    Returns:
        The splits "dev" and "validation".

    Raises:
        UserError: no folder is named, or what is in it is not FinEval.
    """
    import datasets  # comes with the harness; tables of logged samples do not need it

    if fineval_data is None:
        raise UserError(
            "FinEval is not part of this package: name the folder that holds its dev/ and val/ "
            "in the metadata, as fineval_data"
        )
    folder = Path(fineval_data)
    if not folder.is_dir():
        raise UserError(f"fineval_data={folder}: is not a folder; it shall hold dev/ and val/")
    splits: dict[str, Split] = {"dev": "dev", "validation": "val"}
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_list(read_questions(folder, _BY_NAME[subject], split))
            for name, split in splits.items()
        }
    )


def is_fineval(task: str) -> bool:
    """Whether a task, as the harness names it, is a subject of FinEval."""
    return task.rpartition("::")[2].removeprefix(_TASK_PREFIX) in _BY_NAME


def item_results(samples: Samples) -> dict[tuple[str, int], bool]:
    """Whether each question is answered correctly, by subject and number of the question.

    Args:
        samples: what the harness logged; those of other tasks are left out.

    Raises:
        UserError: there are none of FinEval.
    """
    return {
        (sample["doc"]["subject"], sample["doc_id"]): bool(sample["acc"])
        for sample in _fineval_samples(samples)
    }


def fineval_table(samples: Samples) -> list[Score]:
    """The score in each category that has questions, and "All" of them.

    Raises:
        UserError: there are no samples of FinEval.
    """
    results = item_results(samples)
    scores = []
    for category in CATEGORIES:
        right = [
            correct
            for (subject, _), correct in results.items()
            if _BY_NAME[subject].category == category
        ]
        if right:
            scores.append(Score(category, sum(right), len(right)))
    return [*scores, Score("All", sum(results.values()), len(results))]


def majority_baseline(samples: Samples) -> Score:
    """What always giving the most frequent answer scores: a model must be better than that.

    Raises:
        UserError: there are no samples of FinEval.
    """
    answers = Counter(sample["doc"]["answer"] for sample in _fineval_samples(samples))
    answer = max(CHOICES, key=answers.__getitem__)
    return Score(f"always {answer}", answers[answer], answers.total())


def _fineval_samples(samples: Samples) -> list[Mapping[str, Any]]:
    found = [sample for task, logged in samples.items() if is_fineval(task) for sample in logged]
    if not found:
        raise UserError("no question of FinEval was answered; run the task fineval")
    return found


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with the columns that are needed."""
    try:
        text = read_small_file(path).decode("utf-8-sig")  # some copies begin with a BOM
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = list(reader.fieldnames or ())
        rows = list(reader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason}); {_UNPACK_AGAIN}") from None
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}; {_UNPACK_AGAIN}") from None
    if not columns:
        raise UserError(f"{path}: is empty; {_UNPACK_AGAIN}")
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise UserError(f"{path}: has no column {missing[0]}, only {', '.join(columns)}")
    return rows


def _checked(path: Path, number: int, row: Mapping[str, Any]) -> dict[str, str]:
    """The columns that are needed, none of them empty; a file cut short leaves some out."""
    question = {name: row[name] for name in _COLUMNS}
    for name, value in question.items():
        if not value or not value.strip():
            raise UserError(f"{path}: question {number}: {name} is empty; {_UNPACK_AGAIN}")
    if question["answer"] not in CHOICES:
        raise UserError(
            f"{path}: question {number}: answer={question['answer']}: must be one of A, B, C, D"
        )
    return question
