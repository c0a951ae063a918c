"""A real Megatron-LM run, reproduced: same weights, tokens, order, schedule and optimizer.

The reference is a 20-iteration pretrain run of Megatron-LM on CPU in float32; `docs/megatron.md`
tells the story.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def log(shared_data):
    """What Megatron printed: losses, gradient norms, next learning rates, validation losses."""
    text = (shared_data / "megatron" / "train" / "logs" / "tp1pp1.log").read_text()

    def figures(pattern):
        return [float(value) for value in re.findall(pattern, text)]

    losses = figures(r"lm loss: (\S+)")
    losses[1] = 2 * losses[1] - losses[0]  # the second line shows the mean of the first two
    return {
        "loss": losses,
        "gradient_norm": figures(r"grad norm: (\S+)"),
        "next_rate": figures(r"learning rate: (\S+)"),
        "validation": figures(r"validation loss at iteration \d+ \| lm loss value: (\S+)"),
    }


@pytest.fixture(scope="module")
def ours(shared_data, tmp_path_factory):
    """The same run through the ordinary command and config."""
    folder = tmp_path_factory.mktemp("megatron")
    data = shared_data / "megatron" / "train" / "data"
    blend = f"[{{prefix: {data}/en_text_document, weight: 0.7}}, "
    blend += f"{{prefix: {data}/zh_text_document, weight: 0.3}}]"
    command = [
        *(sys.executable, "-m", "dongwu_jax.train"),
        *("--config", str(ROOT / "configs" / "megatron_reference.yaml")),
        f"data.blend={blend}",
        f"data.index_cache={folder / 'cache'}",
        f"training.initial_weights={shared_data / 'megatron' / 'ckpt' / 'hf' / 'gqa_untied'}",
        f"checkpoint.directory={folder / 'checkpoints'}",
        "mesh.data=1",
    ]
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "", "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "train": [record for record in records if "loss" in record],
        "validation": [r["validation_loss"] for r in records if "validation_loss" in r],
    }


def test_twenty_losses_agree_to_a_millionth(log, ours):
    assert len(log["loss"]) == 20
    assert [record["loss"] for record in ours["train"]] == pytest.approx(log["loss"], abs=1e-6)


def test_gradient_norms_agree_to_three_decimals(log, ours):
    norms = [record["gradient_norm"] for record in ours["train"]]
    # The log is rounded to three decimals, so half of the last one and float32 noise on top.
    assert norms == pytest.approx(log["gradient_norm"], abs=0.000_52)


def test_learning_rates_agree(log, ours):
    """Megatron logs the rate of the next iteration; the first iteration runs at 0."""
    rates = [record["learning_rate"] for record in ours["train"]]
    assert rates[0] == 0
    assert rates[1:] == pytest.approx(log["next_rate"][:-1], rel=1e-6)


def test_validation_losses_agree(log, ours):
    assert ours["validation"] == pytest.approx(log["validation"][:2], abs=2e-6)
