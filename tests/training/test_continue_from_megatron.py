"""A Megatron run that goes on here: the same samples, learning rates and Adam moments.

`test_megatron_run.py` shows that our run of the reference equals Megatron's; so a run continued
from Megatron's checkpoint must equal our own uninterrupted one.
"""

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from megatron_training_files import (
    genuine_checkpoint,
    write_checkpoint,
    write_distributed_checkpoint,
)

from dongwu_jax.config import RunConfig, load_config
from dongwu_jax.errors import UserError
from dongwu_jax.interop.initial_weights import resolve_initial_weights
from dongwu_jax.models.parameters import named_parameters
from dongwu_jax.training.trainer import Trainer

REFERENCE = Path(__file__).resolve().parents[2] / "configs" / "megatron_reference.yaml"
STEPS = 26  # of which Megatron did 20


@pytest.fixture(scope="module")
def reference_run(shared_data, tmp_path_factory):
    """Makes a configuration of the reference run in a folder, with overrides."""
    data = shared_data / "megatron" / "train" / "data"
    cache = tmp_path_factory.mktemp("cache")
    blend = f"[{{prefix: {data}/en_text_document, weight: 0.7}}, "
    blend += f"{{prefix: {data}/zh_text_document, weight: 0.3}}]"

    def make(folder: Path, *overrides: str) -> RunConfig:
        settings = [
            f"data.blend={blend}",
            f"data.index_cache={cache}",
            f"checkpoint.directory={folder / 'checkpoints'}",
            f"training.duration={STEPS} steps",
            "schedule.decay=160 samples",
            "evaluation.interval=0",
            "mesh.data=4",
            "mesh.tensor=2",
        ]
        return load_config(REFERENCE, [*settings, *overrides])

    return make


@pytest.fixture(scope="module")
def megatron(shared_data):
    """Megatron's checkpoint at iteration 20."""
    return shared_data / "megatron" / "train" / "ckpt_tp1pp1"


@pytest.fixture(scope="module")
def genuine(shared_data):
    """The same as a tree of torch tensors."""
    return genuine_checkpoint(shared_data)


@pytest.fixture(scope="module")
def uninterrupted(shared_data, reference_run, tmp_path_factory):
    """Our run of 26 steps: state after 20, metrics and batches after that."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    weights = shared_data / "megatron" / "ckpt" / "hf" / "gqa_untied"
    config = reference_run(folder, f"training.initial_weights={weights}")
    state = _trainer(config).run(stop_after=20)
    batches = _run(config)
    return {
        "state": state,
        "batches": batches,
        "records": _records(folder)[20:],
        "checkpoints": config.checkpoint.directory,
    }


def _trainer(config: RunConfig) -> Trainer:
    return Trainer(*resolve_initial_weights(config))


def _run(config: RunConfig, stop_after: int | None = None) -> list[dict[str, np.ndarray]]:
    """Train; gives the batches."""
    trainer = _trainer(config)
    batches, place = [], trainer.layout.place

    def recording(batch):
        batches.append(batch)
        return place(batch)

    trainer.layout.place = recording
    trainer.run(stop_after)
    return batches


def _records(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "loss" in record]


def _column(records, name):
    return [record[name] for record in records]


def _assert_same_run(folder, batches, uninterrupted):
    records, expected = _records(folder), uninterrupted["records"]
    assert _column(records, "step") == list(range(21, STEPS + 1))
    assert _column(records, "learning_rate") == _column(expected, "learning_rate")
    assert _column(records, "loss") == pytest.approx(_column(expected, "loss"), rel=1e-5)
    norms = _column(expected, "gradient_norm")
    assert _column(records, "gradient_norm") == pytest.approx(norms, rel=1e-4)
    for batch, other in zip(batches, uninterrupted["batches"], strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, other)


def test_a_continued_run_equals_the_uninterrupted_one(
    megatron, reference_run, uninterrupted, tmp_path
):
    config = reference_run(tmp_path, f"training.continue_from={megatron}")
    _assert_same_run(tmp_path, _run(config), uninterrupted)


def test_metrics_of_another_run_are_set_aside(megatron, reference_run, tmp_path):
    earlier = '{"step": 30, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_text(earlier)
    _run(reference_run(tmp_path, f"training.continue_from={megatron}"), stop_after=1)
    assert (tmp_path / "metrics.1.jsonl").read_text() == earlier
    assert [record["step"] for record in _records(tmp_path)] == [21]


def test_it_resumes_from_its_own_checkpoint(genuine, reference_run, uninterrupted, tmp_path):
    """Not from Megatron's, which is not needed any more."""
    path = write_checkpoint(tmp_path / "megatron", genuine)
    config = reference_run(tmp_path, f"training.continue_from={path}")
    batches = _run(config, stop_after=3)
    path.rename(tmp_path / "elsewhere")
    batches += _run(config)
    _assert_same_run(tmp_path, batches, uninterrupted)


def test_the_state_at_the_start_is_ours_at_that_step(
    megatron, reference_run, uninterrupted, tmp_path
):
    ours = uninterrupted["state"]
    state = _trainer(
        reference_run(tmp_path, f"training.continue_from={megatron}")
    ).resume_or_start()
    assert jax.tree.structure(state) == jax.tree.structure(ours)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(ours), strict=True):
        assert one.dtype == other.dtype
        assert one.sharding == other.sharding
    assert int(state.step) == 20
    assert int(state.optimizer_state[0].count) == 20
    _assert_close(state.parameters, ours.parameters, 1e-4)
    _assert_close(state.optimizer_state[0].mu, ours.optimizer_state[0].mu, 1e-4)
    _assert_close(state.optimizer_state[0].nu, ours.optimizer_state[0].nu, 1e-4)


def _assert_close(tree, other, tolerance):
    """Relative to the largest value of each tensor: both sides add up in their own order."""
    expected = named_parameters(other)
    for name, values in named_parameters(tree).items():
        scale = float(np.abs(expected[name]).max())
        np.testing.assert_allclose(
            values, expected[name], rtol=0, atol=tolerance * scale, err_msg=name
        )


@pytest.mark.parametrize(
    "layout",
    [
        {"tensor": 2},
        {"pipeline": 2},
        {"bfloat16": True},
        {"tensor": 2, "pipeline": 2, "bfloat16": True},
    ],
    ids=str,
)
def test_every_layout_gives_the_same_start(genuine, megatron, reference_run, tmp_path, layout):
    """The float32 masters, not the bfloat16 weights."""
    path = write_checkpoint(tmp_path / "megatron", genuine, **layout)
    state, expected = (
        _trainer(reference_run(tmp_path, f"training.continue_from={origin}")).resume_or_start()
        for origin in (path, megatron)
    )
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_torch_dist_gives_the_same_start(genuine, megatron, reference_run, tmp_path):
    path = write_distributed_checkpoint(tmp_path / "dist", genuine, "reshardable", bfloat16=True)
    state, expected = (
        _trainer(reference_run(tmp_path, f"training.continue_from={origin}")).resume_or_start()
        for origin in (path, megatron)
    )
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_without_moments_samples_and_learning_rate_go_on(genuine, reference_run, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    without = {name: value for name, value in genuine.items() if name != "optimizer"}
    path = write_checkpoint(tmp_path / "megatron", without)
    config = reference_run(tmp_path, f"training.continue_from={path}", "schedule.decay=400 samples")
    state = _trainer(config).resume_or_start()
    assert int(state.step) == 20
    assert int(state.optimizer_state[0].count) == 0
    for leaf in jax.tree.leaves((state.optimizer_state[0].mu, state.optimizer_state[0].nu)):
        assert not np.any(leaf)
    assert "weights, iteration 20, 160 samples" in caplog.text
    assert "Adam moments not" in caplog.text
    _run(config, stop_after=2)
    record = _records(tmp_path)[0]
    share = 0.5 * (np.cos(np.pi * (160 - 32) / (400 - 32)) + 1)
    assert record["learning_rate"] == pytest.approx(2e-4 + 1.8e-3 * share, rel=1e-6)


def test_buckets_of_the_distributed_optimizer_are_left_behind(
    genuine, reference_run, tmp_path, caplog
):
    path = write_distributed_checkpoint(tmp_path / "dist", genuine, "buckets", bfloat16=True)
    _, start = resolve_initial_weights(reference_run(tmp_path, f"training.continue_from={path}"))
    assert start.step == 20
    assert start.load_moments is None
    assert "Adam moments and float32 master weights not" in caplog.text
    assert "--dist-ckpt-optim-fully-reshardable" in caplog.text


def test_the_same_checkpoint_can_begin_a_new_run(megatron, reference_run, tmp_path):
    """Of its 1,152 rows the configuration calls 1,100 tokens."""
    config = reference_run(tmp_path, f"training.initial_weights={megatron}")
    resolved, start = resolve_initial_weights(config)
    assert (resolved.model.vocab_size, resolved.model.vocab_rows) == (1100, 1152)
    assert (start.step, start.load_moments) == (0, None)


def test_every_difference_of_the_recipe_is_named(megatron, reference_run, tmp_path, caplog):
    config = reference_run(
        tmp_path,
        f"training.continue_from={megatron}",
        "optimizer.learning_rate=3e-4",
        "optimizer.clip_norm=null",
        "schedule.type=linear",
        "schedule.warmup=6 steps",
        "schedule.decay=200 samples",
        "data.seed=7",
        "data.split='98,1,1'",
    )
    resolve_initial_weights(config)
    for line in (
        "optimizer.learning_rate=0.0003, the checkpoint was trained with 0.002",
        "optimizer.clip_norm=0, the checkpoint was trained with 1",
        "schedule.type=linear, the checkpoint was trained with cosine",
        "schedule.warmup in samples=48, the checkpoint was trained with 32",
        "schedule.decay in samples=200, the checkpoint was trained with 160",
        "data.seed=7, the checkpoint was trained with 1234",
        "data.split=98,1,1, the checkpoint was trained with 900,50,50",
        "in samples=208, the checkpoint was trained with 160",
    ):
        assert line in caplog.text


def test_the_same_recipe_is_continued_without_a_warning(genuine, reference_run, tmp_path, caplog):
    planned = {"train_iters": STEPS, "lr_decay_iters": STEPS}
    scheduler = genuine["opt_param_scheduler"] | {"lr_decay_steps": STEPS * 8}
    tree = genuine | {"opt_param_scheduler": scheduler}
    path = write_checkpoint(tmp_path / "megatron", tree, arguments=planned)
    overrides = (f"training.continue_from={path}", "schedule.decay=null")
    resolve_initial_weights(reference_run(tmp_path, *overrides))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("overrides", "arguments", "message"),
    [
        (["training.global_batch_size=16"], {}, "consumed_train_samples=160 .* 20 x .*=16 = 320"),
        (["training.duration=20"], {}, "iteration 20, .* ends at step 20"),
        ([], {"rampup_batch_size": ["4", "4", "80"], "consumed_train_samples": 96}, "rampup"),
        ([], {"consumed_train_samples": None}, "no consumed_train_samples"),
        (["model.num_layers=3"], {}, "model.num_layers=3, but the weights"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    genuine, reference_run, tmp_path, overrides, arguments, message
):
    path = write_checkpoint(tmp_path / "megatron", genuine, arguments=arguments)
    config = reference_run(tmp_path, f"training.continue_from={path}", *overrides)
    with pytest.raises(UserError, match=message):
        resolve_initial_weights(config)


def test_other_models_are_refused(shared_data, reference_run, tmp_path):
    weights = shared_data / "megatron" / "ckpt" / "hf" / "gqa_untied"
    config = reference_run(tmp_path, f"training.continue_from={weights}")
    with pytest.raises(UserError, match="continue_from.*not a Megatron.*initial_weights"):
        resolve_initial_weights(config)


def test_our_own_checkpoints_need_no_such_setting(reference_run, uninterrupted, tmp_path):
    config = reference_run(tmp_path, f"training.continue_from={uninterrupted['checkpoints']}")
    with pytest.raises(UserError, match=r"set checkpoint\.directory to its folder"):
        resolve_initial_weights(config)


def test_continue_from_and_initial_weights_exclude_each_other(reference_run, tmp_path):
    with pytest.raises(UserError, match="are both set"):
        reference_run(tmp_path, "training.initial_weights=a", "training.continue_from=b")
