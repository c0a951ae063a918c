"""Estimated speed against measured steps of one H100 and against the arithmetic of pipelines."""

from pathlib import Path
from typing import Any

import pytest
from command_lines import load_script

from dongwu_jax.config import parse_config
from dongwu_jax.models.flops import flops_per_token
from dongwu_jax.plan.cluster import GPUS
from dongwu_jax.plan.planning import Plan, sketch_plan
from dongwu_jax.plan.step_time import bubble

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
plan_check = load_script(BENCHMARKS / "plan_check.py")

SLICE = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_heads": 40,
    "num_layers": 4,
    "max_position_embeddings": 32768,
}


def _plan(gpu: str = "h100", devices: int = 1, length: int = 4096, **sections: Any) -> Plan:
    settings: dict[str, Any] = {
        "model": SLICE,
        "data": {"sequence_length": length},
        "training": {
            "global_batch_size": 32768 // length,
            "micro_batch_size": max(8192 // length, 1),
        },
    }
    for name, section in sections.items():
        settings[name] = settings.get(name, {}) | section
    return sketch_plan(parse_config(settings, "test"), GPUS[gpu], devices)


def _tflops(plan: Plan) -> float:
    """By Megatron's V2 count."""
    model, length = plan.config.model, plan.config.data.sequence_length
    tokens = plan.step_time.tokens / plan.device_count
    return tokens * flops_per_token(model, length, "V2") / plan.step_time.total / 1e12


@pytest.mark.parametrize(
    ("remat", "length", "measured"),
    [("none", 4096, 600), ("attention", 4096, 498), ("full", 4096, 490), ("full", 32768, 589)],
)
def test_an_h100_at_measured_speed(remat: str, length: int, measured: float) -> None:
    plan = _plan(length=length, training={"remat": remat})
    assert _tflops(plan) == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(
    ("layout", "measured"),
    [
        ("zero1", 0.548),
        ("fsdp", 0.600),
        ("fsdp_attention", 0.703),
        ("tensor", 0.615),
        ("ulysses", 0.715),
        ("ring", 0.711),
        ("pipe", 0.811),
        ("pipe_virtual", 0.800),
    ],
)
def test_two_h100s_at_measured_speed(layout: str, measured: float) -> None:
    """Seconds a step of benchmarks/plan_check.py."""
    plan = sketch_plan(plan_check.layout_config(layout, 2, 4), GPUS["h100"], 2)
    assert plan.step_time.total == pytest.approx(measured, rel=0.075)


@pytest.mark.parametrize(
    ("case", "measured"),
    [
        ("weak_1", 0.504),
        ("weak_4", 0.536),
        ("13b_fsdp", 4.082),
        ("13b_fsdp_tensor_minimal", 3.851),
        ("13b_pipe", 5.083),
        ("7b_fsdp_minimal", 2.753),
        ("13b_fsdp_minimal", 3.566),
        ("13b_tensor", 4.914),
        ("13b_tensor_fsdp", 4.584),
        ("13b_pipe_virtual", 4.961),
        ("13b_32k_fsdp", 5.784),
        ("13b_32k_context", 6.286),
        ("31b_fsdp", 2.721),
    ],
)
def test_four_h200s_at_measured_speed(
    case: str, measured: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds a step of benchmarks/multigpu.py; the rates are fitted to one H200."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    run = load_script(BENCHMARKS / "multigpu_cases.py").cases(4)[case]
    plan = sketch_plan(run.config(4), GPUS["h200"], 1 if run.one_gpu else 4)
    assert plan.step_time.total == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("layers", "pipe", "micro_batch", "billion_tokens"),
    [
        (36, 2, 12, 0.59),  # 31B
        (80, 4, 4, 0.27),  # 65B
    ],
)
def test_a100s_as_fast_as_megatron_on_a_cluster(
    layers: int, pipe: int, micro_batch: int, billion_tokens: float
) -> None:
    """Tokens a day on 8 of 32 GPUs; 2,400 sequences of 2,048 tokens a step."""
    plan = _plan(
        "a100",
        32,
        2048,
        model={
            "hidden_size": 8192,
            "intermediate_size": 21824,
            "num_layers": layers,
            "num_heads": 64,
        },
        mesh={"pipe": pipe, "tensor": 8},
        sharding={"rules": {"embed": ["fsdp", "context", "data", "pipe"]}},
        training={"global_batch_size": 2400, "micro_batch_size": micro_batch},
    )
    assert plan.step_time.tokens_per_day_per_host / 1e9 == pytest.approx(billion_tokens, rel=0.05)


def test_a_pipeline_is_idle_while_it_fills() -> None:
    mesh = {"pipe": 4}
    training = {"global_batch_size": 8, "micro_batch_size": 1}
    plain = _plan(devices=4, mesh=mesh, training=training)
    shape = plain.cluster.mesh_shape
    assert bubble(plain.config, shape) == pytest.approx(3 / 11)
    time = plain.step_time
    assert time.bubble == pytest.approx((time.matmul + time.attention) * 3 / 8)


def test_a_slower_network_makes_replicas_wait() -> None:
    settings = _plan(devices=16, mesh={"fsdp": 8}, training={"global_batch_size": 64}).config
    fast = sketch_plan(settings, GPUS["h100"], 16, 50e9)
    slow = sketch_plan(settings, GPUS["h100"], 16, 5e9)
    # Float32 gradients, an eighth of them a GPU, summed by two replicas; 80% of the links is used.
    seconds = 4 * fast.parameters / 8 / (0.8 * 50e9)
    difference = slow.step_time.total - fast.step_time.total
    assert difference == pytest.approx(9 * seconds, rel=0.01)
    waiting = slow.step_time.communication - fast.step_time.communication
    assert waiting == pytest.approx(difference)
