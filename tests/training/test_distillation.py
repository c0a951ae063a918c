"""Learning from a teacher: the loss against its definition, on meshes, and over a run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_outcomes import metrics
from runs import run_config

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.teacher import resolve_teacher
from dongwu_jax.models.attention import causal_attention
from dongwu_jax.models.parameters import bind, initial_parameters
from dongwu_jax.parallel.layout import make_sharding, teacher_sharding
from dongwu_jax.training.batches import BatchLayout
from dongwu_jax.training.distillation import TeacherModel
from dongwu_jax.training.state import TrainState
from dongwu_jax.training.trainer import Trainer

TEACHER = ModelConfig(
    vocab_size=128,
    hidden_size=48,
    intermediate_size=96,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    max_position_embeddings=32,
    initializer_range=0.2,
)
SETTINGS = {"teacher": "a/teacher", "weight": 0.75, "temperature": 2.0}


def place(config, shardings, dtype):
    weights = initial_parameters(config, seed=7)
    weights = jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, weights)
    return jax.device_put(weights, shardings)


def trainer_of(folder, mesh=None, **sections):
    settings = {"training": {"micro_batch_size": 1}, "distillation": SETTINGS} | sections
    config = run_config(folder, mesh=mesh or {}, **settings)
    width = TEACHER.hidden_size if config.distillation.hidden_weight else None
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"teacher_hidden_size": width})}
    )
    return Trainer(config, teacher=TeacherModel(TEACHER, place))


def on_one_device(monkeypatch, folder, **sections):
    devices = jax.devices()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda: devices[:1])
        trainer = trainer_of(folder, **sections)
        return trainer, trainer.run(stop_after=3), metrics(folder)


def definition(student, student_config, batch, settings, projection=None):
    """The mean loss of a batch, as a textbook would write it."""
    teacher = initial_parameters(TEACHER, seed=7)

    def hidden(config, weights):
        model = bind(config, weights)
        tokens = batch["tokens"].reshape(-1, batch["tokens"].shape[-1])
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        attend = partial(causal_attention, implementation="xla")
        x = model.hidden_states(model.embed(tokens), positions, attend)
        return x, model.logits(x)

    labels = batch["labels"].reshape(-1, batch["labels"].shape[-1])
    (own, logits), (seen, expected) = hidden(student_config, student), hidden(TEACHER, teacher)
    p = jax.nn.log_softmax(expected / settings.temperature)
    q = jax.nn.log_softmax(logits / settings.temperature)
    divergence = jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1))
    likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    loss = settings.weight * settings.temperature**2 * divergence
    loss = loss - (1 - settings.weight) * jnp.mean(likelihood)
    if projection is not None:
        own = own @ projection
        cos = (
            jnp.sum(own * seen, -1) / jnp.linalg.norm(own, axis=-1) / jnp.linalg.norm(seen, axis=-1)
        )
        loss = loss + settings.hidden_weight * jnp.mean(1 - cos)
    return loss


@pytest.mark.parametrize("extra", [{}, {"hidden_weight": 0.5}], ids=["divergence", "hidden"])
@pytest.mark.parametrize("chunk", [0, 8])
def test_loss_and_gradients_are_those_of_the_definition(extra, chunk, tmp_path, monkeypatch):
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices[:1])
    trainer = trainer_of(
        tmp_path,
        distillation=SETTINGS | extra,
        training={"micro_batch_size": 4, "loss_chunk_tokens": chunk},
    )
    weights = trainer.resume_or_start().parameters
    batch = trainer.layout.place(next(trainer._loader(trainer.datasets.train, 0, 1)))
    objective = trainer._objective("cpu")
    scale = 1 / batch["loss_mask"].sum()
    losses, gradients = objective.loss_and_gradients(weights, batch, scale, trainer._frozen)

    def loss(weights):
        projection = weights.get("teacher_projection")
        return definition(
            weights, trainer.config.model, batch, trainer.config.distillation, projection
        )

    expected, expected_gradients = jax.value_and_grad(loss)(weights)
    np.testing.assert_allclose(losses["loss"], expected, rtol=1e-5)
    for found, wanted in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * float(jnp.abs(wanted).max()) + 1e-7)


MESHES = {
    "fsdp_and_tensor": {"fsdp": 2, "tensor": 2, "data": 2},
    "context": {"context": 4, "fsdp": 2},
    "ring": {"context": 8},
    "pipe": {"pipe": 2, "fsdp": 2, "data": 2},
}


@pytest.mark.parametrize("name", MESHES)
def test_steps_on_other_meshes_equal_one_device(name, tmp_path, monkeypatch):
    sections = {"distillation": SETTINGS | {"hidden_weight": 0.5}}
    _, alone, expected = on_one_device(monkeypatch, tmp_path / "one", **sections)
    trainer = trainer_of(tmp_path / "many", MESHES[name], **sections)
    together, found = trainer.run(stop_after=3), metrics(tmp_path / "many")
    for name in ("loss", "divergence", "language_model_loss", "teacher_loss", "hidden_distance"):
        for one, other in zip(expected, found, strict=True):
            assert other[name] == pytest.approx(one[name], rel=2e-5), name
    assert_close(alone, together)


def assert_close(one: TrainState, other: TrainState):
    for a, b in zip(
        jax.tree.leaves(one.parameters), jax.tree.leaves(other.parameters), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_the_teacher_has_its_own_layout(tmp_path):
    mesh = {"fsdp": 4, "data": 2}
    whole = trainer_of(
        tmp_path / "whole", mesh, distillation=SETTINGS | {"sharding_rules": {"embed": None}}
    )
    split = trainer_of(tmp_path / "split", mesh)
    of = {"whole": whole, "split": split}
    shapes = {
        name: t._frozen.teacher["layers"][0]["mlp"]["up_proj"].addressable_shards[0].data.shape
        for name, t in of.items()
    }
    assert shapes == {"whole": (48, 96), "split": (12, 96)}
    for trainer in of.values():
        trainer.run(stop_after=1)
    first = [metrics(tmp_path / name)[0]["divergence"] for name in of]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


def test_the_student_comes_nearer_and_goes_on_bit_exactly(tmp_path):
    settings = SETTINGS | {"weight": 1.0, "hidden_weight": 0.1}
    whole = trainer_of(tmp_path / "whole", distillation=settings).run()
    curves = metrics(tmp_path / "whole")
    for name in ("divergence", "hidden_distance"):
        assert curves[-1][name] < 0.85 * curves[0][name], name
    trainer_of(tmp_path / "parts", distillation=settings).run(stop_after=10)
    parts = trainer_of(tmp_path / "parts", distillation=settings).run()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), jax.device_get(parts))


def test_validation_is_of_the_text_alone(tmp_path):
    trainer = trainer_of(
        tmp_path, evaluation={"interval": 2, "batches": 1}, data={"split": "80,20,0"}
    )
    trainer.run(stop_after=2)
    validation = metrics(tmp_path)[-1]["validation_loss"]
    assert 2 < validation < 8
    assert validation != pytest.approx(metrics(tmp_path)[1]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"embed": ["fsdp", "pipe"]}, "embed=.*can be split over fsdp, context, tensor"),
        ({"batch": ["fsdp"]}, "distillation.sharding_rules.batch"),
    ],
)
def test_impossible_layouts_of_a_teacher_are_refused(rules, message, tmp_path):
    config = run_config(tmp_path, distillation=SETTINGS | {"sharding_rules": rules})
    with pytest.raises(UserError, match=message):
        teacher_sharding(config, make_sharding(config, jax.devices()), TEACHER)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "a", "cache": "b"}, "are both set"),
        ({"cache": "b", "temperature": 2}, "distillation.temperature=2.0: a cache was made at"),
        ({"cache": "b", "loss": "reverse_kl"}, "likeliest tokens alone"),
        ({"cache": "b", "hidden_weight": 1}, "holds no hidden states"),
        ({"teacher": "a", "weight": 0}, "distillation.weight"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run_config(tmp_path, distillation=settings)


def test_heads_of_a_teacher_that_do_not_divide_are_named(tmp_path):
    config = run_config(tmp_path, mesh={"tensor": 8}, model={"num_heads": 8, "num_kv_heads": 8})
    with pytest.raises(UserError, match="teacher: its kv_heads=4.*sharding_rules={kv_heads: null}"):
        teacher_sharding(config, make_sharding(config, jax.devices()), TEACHER)


def test_a_forgotten_teacher_is_noticed(tmp_path, caplog):
    resolve_teacher(run_config(tmp_path, distillation={"weight": 0.5}))
    assert "distillation.weight=0.5: neither teacher nor cache is set" in caplog.text
    with pytest.raises(UserError, match="hidden_weight=0.5 needs distillation.teacher"):
        run_config(tmp_path, distillation={"hidden_weight": 0.5})


def test_going_on_without_the_teacher_is_said(tmp_path, caplog):
    trainer_of(tmp_path).run(stop_after=1)
    Trainer(run_config(tmp_path, training={"micro_batch_size": 1})).run(stop_after=1)
    assert "distillation has changed: teacher was a/teacher and is None" in caplog.text


def test_flops_include_the_teacher_s_forward_pass(tmp_path):
    trainer = trainer_of(tmp_path)
    alone = Trainer(run_config(tmp_path, training={"micro_batch_size": 1}))
    with_teacher, without = (t._progress._throughput.figures(1, 1.0, 0.0) for t in (trainer, alone))
    assert with_teacher["tflops_per_device"] > 1.2 * without["tflops_per_device"]


def test_batches_have_the_cache_s_entries(tmp_path):
    config = run_config(tmp_path)
    entries = {"teacher_ids": (5, np.dtype(np.int32))}
    layout = BatchLayout(config, make_sharding(config, jax.devices()), entries)
    rows = layout.shape
    batch = {"teacher_ids": np.zeros((*rows, 5), np.int32), "tokens": np.zeros(rows, np.int32)}
    placed, abstract = layout.place(batch), layout.abstract()
    for name in batch:
        assert placed[name].shape == abstract[name].shape
        assert placed[name].sharding == abstract[name].sharding
