"""What a plan says beside its figures."""

import io
from typing import Any

import pytest
from rich.console import Console
from runs import BASE

from dongwu_jax.config import overlay, parse_config
from dongwu_jax.plan.cluster import find_gpu
from dongwu_jax.plan.planning import sketch_plan
from dongwu_jax.plan.record import plan_as_json
from dongwu_jax.plan.report import print_plan, print_ranking


@pytest.mark.parametrize(("tensor", "whole"), [(2, ["mlp", "vocab"]), (1, [])])
def test_rules_that_the_estimates_do_not_know(tensor: int, whole: list[str]) -> None:
    changes = {"mesh": {"tensor": tensor}, "sharding": {"rules": {"mlp": None, "vocab": ["fsdp"]}}}
    plan = sketch_plan(parse_config(overlay(BASE, changes), "test"), find_gpu("h100"), 2)
    assert plan_as_json(plan)["wrongly_taken_as_split"] == whole
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    print_plan(plan, console)
    print_ranking([plan], 1, console)
    warning = "sharding.rules leave mlp, vocab whole over tensor, but time and memory are estimated"
    assert printed.getvalue().count(warning) == (2 if whole else 0)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {"precision": {"matmul": "fp8", "compute_dtype": "bfloat16"}},
            "precision.matmul=fp8, but time is estimated as for bfloat16",
        ),
        ({"distillation": {"teacher": "a"}}, "this is planned without distillation.teacher"),
    ],
)
def test_what_is_not_estimated_is_said(changes: dict[str, Any], warning: str) -> None:
    plan = sketch_plan(parse_config(overlay(BASE, changes), "test"), find_gpu("h100"), 1)
    printed = io.StringIO()
    print_plan(plan, Console(file=printed, width=200))
    assert warning in printed.getvalue()
