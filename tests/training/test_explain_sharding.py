"""`--explain-sharding`: what it prints is what the devices hold."""

import re

import jax
import pytest
from rich.console import Console
from runs import run_config

from dongwu_jax.models.parameters import named_parameters
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.training.explain_sharding import explain_sharding
from dongwu_jax.training.state import StartingPoint, initial_state


def rows(table):
    """Cells of the lines of a printed table."""
    console = Console(width=250)
    with console.capture() as captured:
        console.print(table)
    lines = re.split(r"\n", captured.get())
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


def test_weights_are_as_on_the_devices(tmp_path):
    config = run_config(tmp_path, mesh={"fsdp": 2, "tensor": 2, "pipe": 2})
    sharding = make_sharding(config, jax.devices())
    state = initial_state(config, sharding, StartingPoint())
    weights = named_parameters(state.parameters)
    printed = {row[0]: row for row in rows(explain_sharding(config, jax.devices())[1])}
    up_proj = printed["layers.*.mlp.up_proj"]
    shard = weights["layers.0.mlp.up_proj"].addressable_shards[0].data
    assert up_proj[1:4] == ["2", "embed, mlp", "fsdp x pipe, tensor"]
    assert up_proj[4] == ", ".join(map(str, shard.shape))
    assert up_proj[6] == f"{shard.nbytes:,} B"
    held = sum(weight.addressable_shards[0].data.nbytes for weight in weights.values())
    assert printed["all weights"][6] == f"{held:,} B"


def test_activations_of_ulysses(tmp_path):
    config = run_config(tmp_path, mesh={"context": 2, "tensor": 2, "data": 2})
    printed = rows(explain_sharding(config, jax.devices())[2])
    kernel = next(row for row in printed if row[0] == "attention kernel")
    # Two rows of 32 tokens, whole sequences, one of four heads.
    assert kernel[3:5] == ["data, -, tensor x context, -", "2, 32, 1, 8"]
    stream = next(row for row in printed if row[0] == "Llama.embed")
    assert stream[3:5] == ["data, context x tensor, -", "2, 8, 32"]


def test_streams_and_counts_of_a_pipeline(tmp_path):
    config = run_config(
        tmp_path,
        mesh={"pipe": 2, "tensor": 2, "data": 2},
        model={"num_layers": 8},
        training={"micro_batch_size": 1, "pipeline_micro_batches": 4},
    )
    printed = {row[0]: row for row in rows(explain_sharding(config, jax.devices())[2])}
    for name in ("inputs of the stages", "outputs of the stages"):
        assert printed[name][1:4] == [
            "1",
            "micro_batches, batch, residual_length, hidden",
            "-, data, tensor, -",
        ]
        assert printed[name][4] == "4, 1, 16, 32"
    assert printed["tokens"][1] == "1"
    assert printed["Block.normalise"][1] == "16"  # two in each block
    assert printed["Llama.logits"][1] == "1"


@pytest.mark.parametrize("scan_layers", [False, True])
def test_counts_of_blocks(scan_layers, tmp_path):
    config = run_config(tmp_path, training={"scan_layers": scan_layers})
    printed = {row[0]: row for row in rows(explain_sharding(config, jax.devices())[2])}
    assert (printed["Block.normalise"][1], printed["MLP"][1]) == ("4", "2")


def test_adapters_and_what_lies_beneath_them(tmp_path):
    config = run_config(
        tmp_path,
        mesh={"fsdp": 2, "tensor": 4},
        lora={"rank": 4},
        training={"initial_weights": "a/model"},
        precision={"compute_dtype": "bfloat16"},
    )
    _, adapters, weights, activations = explain_sharding(config, jax.devices())
    printed = {row[0]: row for row in rows(adapters)}
    assert printed["layers.*.mlp.up_proj.up"][2:6] == [
        "adapter_rank, mlp",
        "-, tensor",
        "4, 16",
        "float32",
    ]
    printed = {row[0]: row for row in rows(weights)}
    assert printed["layers.*.mlp.up_proj"][3:6] == ["fsdp, tensor", "16, 16", "bfloat16"]
    assert any(row[0] == "attention kernel" for row in rows(activations))
