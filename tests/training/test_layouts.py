"""The same run on other meshes: equal losses, equal gradients, checkpoints that move."""

from pathlib import Path

import jax
import numpy as np
import pytest
from command_lines import load_script
from run_outcomes import metrics
from runs import run_config

from dongwu_jax.errors import UserError
from dongwu_jax.training.trainer import Trainer

layouts = load_script(Path(__file__).parents[2] / "benchmarks" / "layouts.py")


@pytest.fixture(scope="module")
def references():
    """Runs on one device, by model."""
    return {}


@pytest.mark.parametrize(
    "name",
    [  # a ring takes a minute to compile
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("ring") else name
        for name in layouts.LAYOUTS
    ],
)
def test_twenty_steps_equal_one_device(name, references):
    config = layouts.settings_of(name)
    if config.model not in references:
        references[config.model] = layouts.on_one_device(config)
    reference = references[config.model]
    assert reference.losses[-1] < reference.losses[0] - 1  # it learns; equality says something
    found = layouts.difference(layouts.train(config, layouts.device_count(config)), reference)
    assert found.small, found


@pytest.mark.parametrize("place", ["losses", "gradients"])
def test_what_is_no_number_is_not_equal(place):
    def curve(**changed):
        values = {"losses": 2.0, "gradients": 2.0} | changed
        gradients = {"a": np.ones(2), "b": np.array([1, values["gradients"]])}
        return layouts.Curve(np.array([1, values["losses"]]), gradients)

    assert layouts.difference(curve(), curve()).small
    assert not layouts.difference(curve(**{place: np.nan}), curve()).small


def curve(folder):
    """Loss and gradient norm of every step."""
    return np.array([(r["loss"], r["gradient_norm"]) for r in metrics(folder) if "loss" in r])


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    folder, devices = tmp_path_factory.mktemp("one"), jax.devices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: devices()[:1])
        Trainer(run_config(folder)).run()
    return curve(folder)


MOVES = {
    "fsdp_to_tensor": ({"fsdp": 4, "data": 2}, {"tensor": 2, "fsdp": 2, "data": 2}),
    "pipe_to_context": ({"pipe": 2, "fsdp": 4}, {"context": 4, "data": 2}),
    "context_to_pipe": ({"context": 2, "tensor": 4}, {"pipe": 2, "tensor": 2, "data": 2}),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_checkpoint_goes_on_in_another_layout(name, one_device, tmp_path):
    before, after = MOVES[name]
    sections = {"training": {"micro_batch_size": 1, "loss_chunk_tokens": 8, "remat": "offload"}}
    Trainer(run_config(tmp_path, mesh=before, **sections)).run(stop_after=10)
    Trainer(run_config(tmp_path, mesh=after, **sections)).run()
    np.testing.assert_allclose(curve(tmp_path), one_device, rtol=1e-4)


@pytest.mark.parametrize(
    ("mesh", "shard"),
    [
        ({"tensor": 2, "fsdp": 4}, (8, 32)),
        ({"pipe": 2, "fsdp": 2, "context": 2}, (4, 64)),
    ],
    ids=str,
)
def test_weights_and_optimizer_state_are_stored_split(mesh, shard, tmp_path):
    trainer = Trainer(run_config(tmp_path, mesh=mesh, training={"micro_batch_size": 1}))
    state = trainer.resume_or_start()
    for leaf in (state.parameters, state.optimizer_state[0].mu):
        up_proj = leaf["layers"][0]["mlp"]["up_proj"]
        assert up_proj.shape == (32, 64)
        assert up_proj.addressable_shards[0].data.shape == shard


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"mesh": {"tensor": 4}, "model": {"num_kv_heads": 2}},
            "model.num_kv_heads=2 is not divisible by mesh.tensor=4.*sharding.rules.kv_heads=null",
        ),
        ({"mesh": {"pipe": 4}}, "model.num_layers=2 is not divisible by mesh.pipe=4"),
        (
            {"mesh": {"pipe": 2}, "training": {"pipeline_micro_batches": 3}},
            "pipeline_micro_batches=3 is not a multiple of mesh.pipe=2",
        ),
        (
            {"training": {"virtual_stages": 2}},
            "virtual_stages=2 means something only",
        ),
        (
            {
                "mesh": {"context": 8},
                "model": {"num_kv_heads": 2},
                "sharding": {"context_attention": "ulysses"},
            },
            "does not divide the 2 key/value heads; use ring",
        ),
        (
            {"mesh": {"context": 8}, "data": {"sequence_length": 24}, "model": {"num_kv_heads": 2}},
            "sequence_length=24 is not divisible by 16 parts",
        ),
        (
            {"mesh": {"tensor": 4}, "data": {"sequence_length": 30}},
            "sequence_length=30 is not divisible by mesh.context=1 x mesh.tensor=4",
        ),
        (
            {"mesh": {"pipe": 2}, "training": {"scan_layers": True}},
            "scan_layers=true: a pipeline loops over micro batches",
        ),
        (
            {
                "mesh": {"context": 4},
                "data": {"sequence_length": 24},
                "training": {"loss_chunk_tokens": 4},
            },
            "loss_chunk_tokens=4 does not divide the 6 positions",
        ),
        (
            {"sharding": {"rules": {"attention_length": ["tensor"]}}, "mesh": {"tensor": 2}},
            "attention needs it whole",
        ),
        (
            {"sharding": {"rules": {"head_dim": ["tensor"]}}, "mesh": {"tensor": 2}},
            "attention needs it whole",
        ),
        *(
            (
                {"sharding": {"rules": rules}, "mesh": {"tensor": 2}},
                "`tensor` must split it exactly where it splits heads",
            )
            for rules in (
                {"attention_heads": ["context"]},
                {"attention_kv_heads": ["context"]},
                {"heads": None, "kv_heads": None, "attention_kv_heads": ["tensor", "context"]},
                {"heads": None, "kv_heads": None, "attention_heads": ["tensor", "context"]},
            )
        ),
        *(
            (
                {
                    "mesh": {"context": 2, "tensor": 2},
                    "sharding": {"rules": {name: axes}, "context_attention": "ring"},
                },
                rf"sharding.rules.{name}=.*\(sharding.context_attention=ring\) needs \['{ring}'\]",
            )
            for name, axes, ring in (
                ("attention_length", None, "context"),
                ("attention_heads", ["tensor", "context"], "tensor"),
                ("attention_kv_heads", ["tensor", "context"], "tensor"),
            )
        ),
        ({"sharding": {"rules": {"batch": ["data"]}}}, "batch is always split over"),
        (
            {"sharding": {"rules": {"mlp": ["fsdp", "tensor"]}}},
            "`tensor` splits a dimension of a weight alone",
        ),
        (
            {"sharding": {"rules": {"embed": ["data", "fsdp"]}}},
            r"write the axes in order: \['fsdp', 'data'\]",
        ),
        (
            {"sharding": {"rules": {"embed": ["fsdp"], "mlp": ["data"]}}, "mesh": {"fsdp": 2}},
            "and (mlp|embed) of one weight .* only one of its dimensions may be",
        ),
    ],
)
def test_impossible_layouts_are_refused(sections, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Trainer(run_config(tmp_path, **sections)).resume_or_start()
