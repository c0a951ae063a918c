"""What only a GPU can show: cuDNN attention, its remat, bfloat16 training. Skipped without one.

Run with: JAX_PLATFORMS=cuda pytest -m gpu -n 0
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import run_config

from dongwu_jax.models.attention import causal_attention
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.training.batches import BatchLayout
from dongwu_jax.training.state import abstract_state
from dongwu_jax.training.step import make_objective, make_train_step
from dongwu_jax.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"),
]

BFLOAT16 = {
    "model": {"hidden_size": 256, "num_heads": 4, "num_kv_heads": 2, "initializer_range": 0.05},
    "precision": {"compute_dtype": "bfloat16"},
}


def test_cudnn_attention_equals_float32():
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.normal(size=(2, 128, heads, 64)).astype(np.float32) for heads in (8, 2, 2)
    )

    def summed(implementation, dtype):
        def function(*arrays):
            output = causal_attention(*(x.astype(dtype) for x in arrays), implementation)
            return jnp.sum(output.astype(jnp.float32) * query)

        return jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))(query, key, value)

    with jax.default_matmul_precision("highest"):
        exact, exact_gradients = summed("xla", jnp.float32)
    found, gradients = summed("cudnn", jnp.bfloat16)
    assert abs(found - exact) < 0.02 * np.sqrt(query.size)
    for mine, reference in zip(gradients, exact_gradients, strict=True):
        error = np.linalg.norm(mine - reference) / np.linalg.norm(reference)
        assert error < 0.02


@pytest.mark.parametrize(
    "remat", ["none", "minimal", "qkv_attention", "attention", "full", "offload"]
)
def test_flash_attention_runs_again_only_under_full_remat(remat, tmp_path):
    config = run_config(tmp_path, training={"remat": remat}, **BFLOAT16)
    sharding = make_sharding(config, jax.devices()[:1])
    step = make_train_step(config, sharding, make_objective(config, sharding, "gpu"))
    layout = BatchLayout(config, sharding)
    program = step.lower(abstract_state(config, sharding), layout.abstract()).compile().as_text()
    calls = [line for line in program.splitlines() if "custom_call_target=" in line]
    backward = sum("fmhaSoftmaxBackward" in line for line in calls)
    forward = sum("fmhaSoftmax" in line for line in calls) - backward
    layers = config.model.num_layers
    assert backward == layers
    assert forward == (2 * layers if remat == "full" else layers)


def test_bfloat16_follows_float32(tmp_path):
    curves = {}
    for name, dtype in (("half", "bfloat16"), ("full", "float32")):
        folder = tmp_path / name
        folder.mkdir()
        sections = {
            **BFLOAT16,
            "precision": {"compute_dtype": dtype},
            "optimizer": {"learning_rate": 3e-3},  # a larger one amplifies every rounding
        }
        Trainer(run_config(folder, training={"duration": 40}, **sections)).run()
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        curves[name] = [json.loads(line)["loss"] for line in lines]
    assert curves["full"][-1] < curves["full"][0] - 1
    np.testing.assert_allclose(curves["half"], curves["full"], rtol=0.02)
