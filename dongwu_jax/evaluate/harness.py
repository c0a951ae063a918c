"""Tasks of lm-evaluation-harness: its own, ours, and the user's."""

import difflib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.scoring import Scorer

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

logger = logging.getLogger(__name__)

TASKS_FOLDER = Path(__file__).parent / "tasks"
_BOOTSTRAP_SAMPLES = 100  # for standard errors that have no formula
_ADVICE = {  # by what the harness says
    "marked as unsafe": "code that a model writes is never run here; leave the task out",
    "Duplicate task": "name each task once, by itself or by a group",
}


@dataclass(frozen=True)
class SelectedTasks:
    """Tasks that are there, to be given to `run_tasks`.

    Attributes:
        names: of tasks, groups or tags.
        manager: the harness's, which knows their files; to make it takes seconds.
    """

    names: list[str]
    manager: "TaskManager"


def select_tasks(
    names: list[str],
    *,
    include_path: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> SelectedTasks:
    """Find tasks, which needs no model.

    Args:
        names: of tasks, groups or tags.
        include_path: a folder with YAML files of the user's tasks.
        metadata: for tasks that ask for some, such as `fineval_data`.

    Raises:
        UserError: the harness is not installed, there is no such task or folder, or a task is
            named twice.
    """
    check_installed()
    manager = _task_manager(include_path, dict(metadata or {}))
    _check_names(names, manager)
    return SelectedTasks(names, manager)


def run_tasks(
    scorer: Scorer,
    tasks: SelectedTasks,
    *,
    num_fewshot: int | None = None,
    limit: int | float | None = None,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Evaluate a model.

    Code that a data set brings is never run, and no task that runs what the model writes.

    Args:
        num_fewshot: examples in each prompt; None: as many as each task says.
        limit: only so many documents of each task, or this fraction below 1; None: all.
        max_length: tokens of the longest input; None: as many as the model has positions.

    Returns:
        What `lm_eval.simple_evaluate` does, such as "results", and "samples" of each task.

    Raises:
        UserError: a task is part of another one that is named, runs what the model writes, or
            cannot be run as it is written.
    """
    import lm_eval

    from dongwu_jax.evaluate.harness_model import DongwuLM

    model = DongwuLM(scorer, max_length)
    _restrain_libraries()
    try:
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=tasks.names,
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=_BOOTSTRAP_SAMPLES,
            log_samples=True,
            task_manager=tasks.manager,
        )
    except (ArithmeticError, AssertionError, ImportError, LookupError, OSError) as error:
        # Of a task or its data: mistakes in YAML, files and packages that are missing.
        raise UserError(f"{', '.join(tasks.names)}: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise _explained(error) from error
    _report_other_examples(results, num_fewshot)
    return dict(results)


def check_installed() -> None:
    """Whether the harness is there.

    Raises:
        UserError: it is not.
    """
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise UserError(
            "lm-evaluation-harness is not installed; install it with: "
            "pip install 'dongwu_jax[eval]'"
        ) from None


def _report_other_examples(results: Mapping[str, Any], num_fewshot: int | None) -> None:
    """Name the tasks that do not take examples, for the harness does as they say."""
    other = [
        task
        for task, number in results["n-shot"].items()
        if isinstance(number, int) and number != num_fewshot
    ]
    if num_fewshot is not None and other:
        logger.warning(
            "--num-fewshot %d does not change tasks that forbid it: %s",
            *(num_fewshot, ", ".join(other)),
        )


def _restrain_libraries() -> None:
    import datasets

    # The harness would fork processes for its bootstrap, which JAX's threads may not survive.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # counted on a server, local data too


def _task_manager(include_path: Path | None, metadata: dict[str, Any]) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise UserError(f"include_path={include_path}: is not a folder with YAML files of tasks")
    folders = [TASKS_FOLDER] if include_path is None else [TASKS_FOLDER, include_path]
    return TaskManager(include_path=folders, metadata=metadata)


def _check_names(tasks: list[str], manager: "TaskManager") -> None:
    if not tasks:
        raise UserError("no task is named; name at least one, such as fineval")
    if len(set(tasks)) < len(tasks):
        raise UserError(f"tasks {', '.join(tasks)}: one is named twice")
    for task in tasks:
        if task not in manager.task_index:
            near = difflib.get_close_matches(task, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see `lm_eval ls tasks`"
            raise UserError(
                f"task {task}: is not among the harness's, ours and those of include_path "
                f"(YAML files with mistakes are left out); {hint}"
            )


def _explained(error: ValueError) -> UserError:
    said = str(error)
    for part, advice in _ADVICE.items():
        if part in said:
            return UserError(f"{said.partition('. ')[0]}: {advice}")
    return UserError(f"a task cannot be run as it is written: {said}")
