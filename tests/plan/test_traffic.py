"""Closed-form traffic against the collectives of compiled steps."""

from typing import Any

import jax
import pytest
from runs import BASE

from dongwu_jax.config import parse_config
from dongwu_jax.config.loading import _overlay
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.plan.hlo import read_collectives, summarize_collectives
from dongwu_jax.plan.traffic import estimate_traffic
from dongwu_jax.training.batches import BatchLayout
from dongwu_jax.training.state import abstract_state
from dongwu_jax.training.step import make_objective, make_train_step


def _sent(totals: list, kind: str, axis: str) -> int:
    return sum(total.wire_bytes for total in totals if (total.kind, total.axes) == (kind, (axis,)))


@pytest.mark.parametrize(
    ("changes", "kind", "axis"),
    [
        ({"mesh": {"data": 8}}, "all-reduce", "data"),
        ({"mesh": {"fsdp": 8}}, "reduce-scatter", "fsdp"),
        ({"mesh": {"pipe": 2, "data": 4}}, "collective-permute", "pipe"),
        ({"mesh": {"context": 4, "data": 2}}, "all-to-all", "context"),
    ],
)
def test_bytes_over_an_axis(changes: dict[str, Any], kind: str, axis: str) -> None:
    config = parse_config(_overlay(BASE, changes), "test")
    sharding = make_sharding(config, jax.devices())
    step = make_train_step(config, sharding, make_objective(config, sharding, "cpu"))
    lowered = step.lower(abstract_state(config, sharding), BatchLayout(config, sharding).abstract())
    text = lowered.compile().as_text()
    compiled = summarize_collectives(read_collectives(text, sharding.mesh))
    estimated = estimate_traffic(config, config.mesh_shape(8))
    assert _sent(estimated, kind, axis) == pytest.approx(_sent(compiled, kind, axis), rel=0.05)
