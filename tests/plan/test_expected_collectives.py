"""What compiled training steps exchange, against closed forms of it.

XLA for CPU turns bfloat16 collectives into float32 ones, so what it compiles is compared in float32
runs, and dtypes are read from the program as it is handed to the compiler.
"""

import re
from typing import Any

import jax
import pytest

from dongwu_jax.config import RunConfig, parse_config
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.plan.cluster import find_gpu
from dongwu_jax.plan.compile_worker import lower_step
from dongwu_jax.plan.compiler_warnings import capture_stderr, involuntary_rematerialization
from dongwu_jax.plan.compiling import compile_step
from dongwu_jax.plan.deviceless import choose_backend
from dongwu_jax.plan.expected import (
    ExpectedCollective,
    expected_collectives,
    negligible_bytes,
)
from dongwu_jax.plan.hlo import read_collectives, summarize_collectives
from dongwu_jax.plan.replica_groups import axes_within

BASE: dict[str, dict[str, Any]] = {
    "model": {
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 352,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": 32,
    },
    "data": {"sequence_length": 32},
    "training": {"global_batch_size": 16, "duration": 10},
}
ZERO1 = {"rules": {"embed": ["fsdp", "context", "data", "pipe"]}}
LAYOUTS: dict[str, dict[str, dict[str, Any]]] = {
    "data": {"mesh": {"data": 8}},
    "fsdp": {"mesh": {"fsdp": 8}},
    "tensor": {"mesh": {"tensor": 4, "data": 2}},
    "ulysses": {"mesh": {"context": 4, "data": 2}},
    "ring": {"mesh": {"context": 4, "data": 2}, "sharding": {"context_attention": "ring"}},
    "pipe": {"mesh": {"pipe": 2, "data": 4}},
    "pipe_virtual": {
        "mesh": {"pipe": 2, "data": 4},
        "model": {"num_layers": 4},
        "training": {"virtual_stages": 2, "pipeline_micro_batches": 2},
    },
    "zero1": {"mesh": {"data": 4, "fsdp": 2}, "sharding": ZERO1},
    "zero1_pipe": {"mesh": {"data": 4, "pipe": 2}, "sharding": ZERO1},
    "fsdp_tensor": {"mesh": {"fsdp": 4, "tensor": 2}},
    "pipe_tensor_fsdp": {"mesh": {"pipe": 2, "tensor": 2, "fsdp": 2}},
    "fsdp_context_tensor": {"mesh": {"fsdp": 2, "context": 2, "tensor": 2}},
}
# As `plan/deviceless.py` has it: without these passes the CPU compiler joins weights as often as
# the GPU's. The others only make it quicker.
CPU_OPTIONS: dict[str, str | bool] = {
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion,cse_barrier_expander",
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": True,
}
Totals = dict[tuple[str, tuple[str, ...], str], tuple[int | None, int]]


def _config(layout: dict[str, dict[str, Any]], **sections: dict[str, Any]) -> RunConfig:
    merged: dict[str, Any] = {name: dict(section) for name, section in BASE.items()}
    for overrides in (layout, sections):
        for name, section in overrides.items():
            merged[name] = {**merged.get(name, {}), **section}
    return parse_config(merged, source="test")


def _lower(config: RunConfig) -> jax.stages.Lowered:
    return lower_step(config, make_sharding(config, jax.devices()), "cpu")


def _compile(config: RunConfig) -> tuple[Totals, list[str]]:
    """Collectives that are not negligible, and the partitioner's complaints."""
    mesh = make_sharding(config, jax.devices()).mesh
    lowered = _lower(config)
    with capture_stderr() as captured:
        text = lowered.compile(compiler_options=CPU_OPTIONS).as_text()
    assert text is not None
    found = [
        collective
        for collective in read_collectives(text, mesh)
        if collective.operand_bytes > negligible_bytes(config, 8, collective.axes)
    ]
    totals: Totals = {
        (total.kind, total.axes, total.dtype): (total.calls, total.operand_bytes)
        for total in summarize_collectives(found)
    }
    return totals, involuntary_rematerialization(captured.text)


def _expect(config: RunConfig) -> Totals:
    return {
        (one.kind, one.axes, one.dtype): (one.calls, one.operand_bytes)
        for one in _on_cpu(config, expected_collectives(config, 8))
    }


def _on_cpu(config: RunConfig, expected: list[ExpectedCollective]) -> list[ExpectedCollective]:
    """What XLA for CPU makes of sums over tensor: all-reduces where a GPU scatters."""
    scattered, summed = ("reduce-scatter", ("tensor",)), ("all-reduce", ("tensor",))
    over_tensor = [one for one in expected if (one.kind, one.axes) in (scattered, summed)]
    if not over_tensor:
        return expected
    total = sum(one.operand_bytes for one in over_tensor) + _summed_apart(config)
    others = [one for one in expected if one not in over_tensor]
    return [*others, ExpectedCollective("all-reduce", ("tensor",), "f32", None, total)]


def _summed_apart(config: RunConfig) -> int:
    """Bytes of three sums a block that GPUs save: the inputs' gradients of query, key and value
    are added before they are summed over devices, as are those of gate and up."""
    shape, model, training = config.mesh_shape(8), config.model, config.training
    rows = training.micro_batch_size * config.data.sequence_length // shape["context"]
    micro_batches, stages = config.accumulation_steps(8), shape["pipe"]
    ticks = micro_batches + stages - 1  # one virtual stage
    return 3 * ticks * (model.num_layers // stages) * rows * model.hidden_size * 4


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_step_exchanges_what_it_must(name: str) -> None:
    config = _config(LAYOUTS[name], precision={"compute_dtype": "float32"})
    totals, complaints = _compile(config)
    expected = _expect(config)
    assert totals.keys() == expected.keys()
    for key, (calls, operand_bytes) in expected.items():
        found_calls, found_bytes = totals[key]
        assert found_calls is not None
        if calls is not None:
            assert found_calls == calls, key
        slack = found_calls * negligible_bytes(config, 8, key[1])  # scalars summed along
        assert operand_bytes <= found_bytes <= operand_bytes + slack, key
    assert not complaints


@pytest.mark.parametrize("remat", ["attention", "qkv_attention", "minimal", "full"])
def test_recomputation_over_context(remat: str) -> None:
    """What remat makes the program exchange again, before any compiler merges calls."""
    for attention in ("ulysses", "ring"):
        config = _config(
            {"mesh": {"context": 4, "data": 2}, "sharding": {"context_attention": attention}},
            training={"remat": remat},
        )
        kind = "all-to-all" if attention == "ulysses" else "collective-permute"
        micro_batches = config.accumulation_steps(8)
        (expected,) = (
            sum(one.calls or 0 for one in expected_collectives(config, 8) if one.kind == kind),
        )
        assert _written(_lower(config).as_text(), kind) * micro_batches == expected


@pytest.mark.parametrize("reduce_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["fsdp", "ring", "ulysses", "zero1_pipe", "pipe_tensor_fsdp"])
def test_dtypes(name: str, reduce_dtype: str) -> None:
    """Weights and activations travel in bfloat16, gradients in what the settings say."""
    config = _config(LAYOUTS[name], precision={"grad_reduce_dtype": reduce_dtype})
    expected = {
        (one.kind, one.axes, one.dtype)
        for one in expected_collectives(config, 8)
        if one.axes != ("tensor",)
    }
    assert _hand_written(config) == expected


CUDA_BASE: dict[str, dict[str, Any]] = {  # 13B width
    "model": {"hidden_size": 5120, "intermediate_size": 13824, "num_layers": 3, "num_heads": 40},
    "data": {"sequence_length": 4096},
}
CUDA_LAYOUTS: dict[str, dict[str, dict[str, Any]]] = {
    "fsdp": {"mesh": {"fsdp": 8}, "training": {"remat": "attention"}},
    "tensor": {"mesh": {"tensor": 8}, "training": {"global_batch_size": 2}},
    "pipe_tensor_fsdp": {
        "mesh": {"pipe": 2, "tensor": 2, "fsdp": 2},
        "model": {"num_layers": 2},
        "training": {"remat": "attention"},
        "precision": {"grad_reduce_dtype": "bfloat16"},
    },
    "fsdp_context_tensor": {"mesh": {"fsdp": 2, "context": 2, "tensor": 2}},
}


@pytest.mark.slow
@pytest.mark.skipif(choose_backend("auto") != "cuda", reason="needs JAX's CUDA plugin")
@pytest.mark.parametrize("name", CUDA_LAYOUTS)
def test_what_gpus_would_exchange(name: str) -> None:
    """XLA for GPUs merges calls, never adds any; its dtypes are those of the program."""
    width = _config(CUDA_BASE, model={"vocab_size": 32000, "max_position_embeddings": 4096})
    sections = {name: section for name, section in CUDA_LAYOUTS[name].items() if name != "model"}
    layers = CUDA_LAYOUTS[name].get("model", {})
    config = _config(sections, model={**width.model.model_dump(), **layers}, data=CUDA_BASE["data"])
    step = compile_step(config, find_gpu("h100"), 8, "cuda")
    expected = {(one.kind, one.axes, one.dtype): one for one in expected_collectives(config, 8)}
    found = {(total.kind, total.axes, total.dtype): total for total in step.collectives}
    assert expected.keys() <= found.keys()
    for key, total in found.items():
        slack = total.calls * negligible_bytes(config, 8, total.axes)
        one = expected.get(key)
        least = 0 if one is None or key[:2] == ("all-reduce", ("tensor",)) else one.operand_bytes
        most = slack + (0 if one is None else one.operand_bytes)
        assert least <= total.operand_bytes <= most, key
        assert one is None or one.calls is None or total.calls <= one.calls, key
    assert not step.complaints


def _hand_written(config: RunConfig) -> set[tuple[str, tuple[str, ...], str]]:
    """Kind, axes and dtype of the collectives in the program that XLA is given, but scalars
    and tokens."""
    mesh = make_sharding(config, jax.devices()).mesh
    found = set()
    for kind, groups, shape in _COLLECTIVE.findall(_lower(config).as_text()):
        *sizes, dtype = shape.split("x")
        named = set(re.findall(r'axis_ref<name = "(\w+)"', groups))  # from JAX 0.11 on
        members = [
            list(map(int, group.split(","))) for group in re.findall(r"\[([\d, ]+)\]", groups)
        ]
        axes = axes_within(members, mesh) or tuple(axis for axis in mesh.shape if axis in named)
        if sizes and axes and dtype != "i32":
            found.add((kind.replace("_", "-"), axes, dtype))
    return found


def _written(text: str, kind: str) -> int:
    return sum(found.replace("_", "-") == kind for found, _, _ in _COLLECTIVE.findall(text))


_COLLECTIVE = re.compile(
    r'"stablehlo\.(all_gather|reduce_scatter|all_reduce|all_to_all|collective_permute)"'
    r".*?(?:replica_groups|source_target_pairs) = (dense<.*?>|#stablehlo.*?\]>)"
    r".*?[)>] : \(tensor<(.*?)>",
    re.DOTALL,
)
