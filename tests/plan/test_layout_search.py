"""`--search`: what it finds can be run."""

import io
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from runs import BASE

from dongwu_jax.config import RunConfig, load_config
from dongwu_jax.plan.cluster import find_gpu
from dongwu_jax.plan.layout_search import sketch_layouts
from dongwu_jax.plan.planning import Plan
from dongwu_jax.plan.record import plan_as_json
from dongwu_jax.plan.report import print_ranking


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE | {"mesh": {"pipe": 2}}))
    return path


def _sketches(config: RunConfig) -> list[Plan]:
    return sketch_layouts(config, find_gpu("h100"), 4, None)


def test_overrides_of_a_layout_make_the_run_it(run_file: Path) -> None:
    plans = _sketches(load_config(run_file))
    for plan in plans:
        assert load_config(run_file, plan_as_json(plan)["overrides"]) == plan.config


def test_no_layout_stands_twice(run_file: Path) -> None:
    printed = io.StringIO()
    plans = _sketches(load_config(run_file))
    print_ranking(plans, len(plans), Console(width=200, file=printed))
    rows = [line for line in printed.getvalue().splitlines() if line.startswith("│")]
    assert len(rows) == len(plans)
    assert len(set(rows)) == len(rows)
