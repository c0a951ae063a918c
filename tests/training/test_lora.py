"""Adapters: against PEFT on the same weights, on meshes, resumed, merged and exported."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import run_config

from dongwu_jax.config import parse_config
from dongwu_jax.config.lora import LoraConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.conversion import TargetOptions, convert, make_target
from dongwu_jax.interop.initial_weights import resolve_initial_weights
from dongwu_jax.interop.sources import open_source
from dongwu_jax.models.lora import abstract_adapters
from dongwu_jax.models.parameters import named_parameters
from dongwu_jax.training.batches import BatchLayout
from dongwu_jax.training.checkpoints.stored_weights import WeightReader
from dongwu_jax.training.trainer import Trainer

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GROUPED = {"num_kv_heads": 2}
SOME = ["q_proj", "o_proj", "down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a checkpoint and a Hugging Face export of a model to adapt."""
    folder = tmp_path_factory.mktemp("lora")
    config = run_config(
        folder,
        model=GROUPED,
        training={"duration": 1},
        checkpoint={"directory": str(folder / "base")},
    )
    Trainer(config).run()
    export(folder / "base", folder / "hf", format="hf")
    return folder


@pytest.fixture(scope="module")
def other(folder):
    """A checkpoint of a model of the same shape."""
    config = run_config(
        folder,
        model=GROUPED,
        training={"duration": 1, "seed": 5},
        checkpoint={"directory": str(folder / "other")},
    )
    Trainer(config).run()
    return folder / "other"


def export(source, target, **options):
    opened = open_source(source)
    convert(opened, target, make_target(opened, TargetOptions(**options)))
    opened.close()


def trainer_of(folder, name, mesh=None, lora=None, base="hf", **sections):
    training = {"initial_weights": str(folder / base), "micro_batch_size": 1, "duration": 6}
    settings = {
        "model": GROUPED | sections.pop("model", {}),
        "training": training | sections.pop("training", {}),
        "lora": {"rank": 4, "alpha": 6.0} | (lora or {}),
        "checkpoint": {"directory": str(folder / name / "checkpoints"), "interval": 3},
    }
    config, start = resolve_initial_weights(
        run_config(folder, mesh=mesh or {}, **settings, **sections)
    )
    return Trainer(config, start)


def on_one_device(monkeypatch):
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *_: devices[:1])


def losses(folder, name):
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def in_peft(folder, adapters):
    """PEFT's own model of an exported adapter, in float32."""
    base = transformers.LlamaForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    return peft.PeftModel.from_pretrained(base, adapters, is_trainable=True)


@pytest.mark.parametrize("targets", [None, SOME], ids=["all", "some"])
def test_gradients_are_those_of_peft(targets, folder, tmp_path, monkeypatch):
    on_one_device(monkeypatch)
    trainer = trainer_of(
        folder, f"gradients_{bool(targets)}", lora={"targets": targets} if targets else {}
    )
    state = trainer.run(stop_after=2)  # `up` is no longer zero
    export(trainer.checkpoints.directory, tmp_path / "adapters", format="peft")
    batch = trainer.layout.place(next(trainer._loader(trainer.datasets.train, 0, 1)))
    objective = trainer._objective("cpu")
    found, gradients = jax.jit(objective.loss_and_gradients)(
        state.parameters, batch, jnp.float32(1 / 512), trainer._frozen
    )
    model = in_peft(folder, tmp_path / "adapters")
    tokens, labels = (
        torch.tensor(np.asarray(batch[name]).reshape(-1, 32), dtype=torch.long)
        for name in ("tokens", "labels")
    )
    logits = model(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 128), labels.reshape(-1))
    loss.backward()
    assert float(found["loss"]) == pytest.approx(float(loss), rel=1e-5)
    theirs = {
        name: weight.grad.numpy()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    ours = named_parameters(gradients)
    assert len(theirs) == len(ours) == 2 * 2 * (3 if targets else 7)
    places = {"attention": "self_attn", "mlp": "mlp"}
    for name, gradient in ours.items():
        _, layer, part, matrix, side = name.split(".")
        pair = {"down": "lora_A", "up": "lora_B"}[side]
        linear = f"base_model.model.model.layers.{layer}.{places[part]}.{matrix}"
        expected = theirs[f"{linear}.{pair}.default.weight"].T
        gradient = np.asarray(gradient).reshape(expected.shape)
        np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=2e-6, err_msg=name)


def test_merged_export_is_the_adapter_applied_in_peft(folder, tmp_path, monkeypatch):
    on_one_device(monkeypatch)
    trainer = trainer_of(folder, "merged")
    trainer.run()
    checkpoint = trainer.checkpoints.directory
    export(checkpoint, tmp_path / "adapters", format="peft")
    export(checkpoint, tmp_path / "merged", format="hf")
    theirs = in_peft(folder, tmp_path / "adapters")
    ours = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 128, (4, 32)))
    with torch.no_grad():
        applied, merged = theirs(tokens).logits, ours(tokens).logits
        plain = theirs.get_base_model()
        with theirs.disable_adapter():
            before = plain(tokens).logits
    assert (applied - before).abs().max() > 0.1  # it has learnt something
    np.testing.assert_allclose(merged.numpy(), applied.numpy(), rtol=1e-4, atol=1e-4)
    weights = theirs.merge_and_unload().state_dict()
    for name, weight in ours.state_dict().items():
        np.testing.assert_allclose(weight.numpy(), weights[name].numpy(), atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "mesh",
    [
        {"fsdp": 2, "tensor": 2, "data": 2},
        {"context": 2, "fsdp": 4},
        {"fsdp": 8, "rules": {"adapter_embed": ["fsdp"]}},
    ],
    ids=["fsdp-tensor", "context", "split-adapters"],
)
def test_every_layout_trains_the_same(mesh, folder, tmp_path, monkeypatch):
    name = "-".join(mesh)
    rules = mesh.pop("rules", {}) if "rules" in mesh else {}
    trainer_of(folder, name, mesh=dict(mesh), sharding={"rules": rules}).run()
    with monkeypatch.context() as patch:
        on_one_device(patch)
        trainer_of(folder, f"{name}-one").run()
    np.testing.assert_allclose(losses(folder, name), losses(folder, f"{name}-one"), rtol=2e-5)


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(folder, monkeypatch):
    on_one_device(monkeypatch)
    trainer_of(folder, "whole").run()
    trainer_of(folder, "parts").run(stop_after=3)
    trainer_of(folder, "parts").run()
    one, two = (WeightReader(folder / name / "checkpoints" / "6") for name in ("whole", "parts"))
    assert list(one) == list(two)
    assert all(name.endswith((".down", ".up")) for name in one)  # the rest is not kept again
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_adapters_are_refused_on_other_weights(folder, other, monkeypatch):
    on_one_device(monkeypatch)
    trainer = trainer_of(folder, "refused")
    trainer.run(stop_after=3)
    with pytest.raises(UserError, match="other: .* is not what the adapters were trained on"):
        trainer_of(folder, "refused", base=other).run()
    with pytest.raises(UserError, match="lora.rank was 4 and is 8"):
        trainer_of(folder, "refused", lora={"rank": 8}).run()
    checkpoint = trainer.checkpoints.directory
    merged = open_source(checkpoint, base_weights=other)
    for name in ("layers.0.mlp.up_proj", "embed_tokens"):  # with an adapter and without
        with pytest.raises(UserError, match=f"{name} is not what the adapters"):
            merged.read(name)
    with pytest.raises(UserError, match="is not what the adapters"):
        make_target(merged, TargetOptions(format="peft"))
    moved = open_source(checkpoint, base_weights=folder / "base")  # the same, in another format
    assert moved.read("layers.0.mlp.up_proj").dtype == np.float32


def test_other_weights_are_refused_in_another_precision_too(folder, other, monkeypatch):
    on_one_device(monkeypatch)
    trainer_of(folder, "rounded", precision={"compute_dtype": "bfloat16"}).run(stop_after=1)
    with pytest.raises(UserError, match="is not what the adapters were trained on"):
        trainer_of(folder, "rounded", base=other).run()
    trainer_of(folder, "rounded").run(stop_after=1)  # goes on in float32


def test_a_run_may_pad_the_vocabulary_beneath_adapters(folder, tmp_path, monkeypatch):
    on_one_device(monkeypatch)
    trainer = trainer_of(folder, "padded", model={"padded_vocab_size": 144})
    trainer.run(stop_after=2)
    checkpoint = trainer.checkpoints.directory
    for format in ("dongwu", "megatron", "hf"):
        export(checkpoint, tmp_path / format, format=format)
    padded, plain = (open_source(tmp_path / format) for format in ("dongwu", "hf"))
    assert padded.read("embed_tokens").shape == (144, 32)
    assert not padded.read("embed_tokens")[128:].any()
    np.testing.assert_array_equal(padded.read("lm_head")[:, :128], plain.read("lm_head"))


def test_adapters_for_other_positions_than_the_base_has_are_not_exported(folder, monkeypatch):
    on_one_device(monkeypatch)
    scaling = {"rope_scaling": {"type": "linear", "factor": 2.0}, "max_position_embeddings": 64}
    trainer = trainer_of(folder, "scaling", model=scaling)
    trainer.run(stop_after=1)
    with pytest.raises(UserError, match=r"model.rope_scaling=.*linear.*--to-format hf"):
        export(trainer.checkpoints.directory, folder / "never", format="peft")


def test_adapters_in_the_place_of_their_base_are_said(folder, monkeypatch):
    on_one_device(monkeypatch)
    shutil.copytree(folder / "base", folder / "replaced")
    trainer = trainer_of(folder, "replacing", base="replaced")
    trainer.run(stop_after=1)
    shutil.rmtree(folder / "replaced")
    trainer.checkpoints.directory.rename(folder / "replaced")
    with pytest.raises(UserError, match="holds adapters alone, .*--base-weights"):
        open_source(folder / "replaced")


def test_a_base_that_is_gone_is_named(folder, tmp_path, monkeypatch):
    on_one_device(monkeypatch)
    shutil.copytree(folder / "hf", folder / "gone")
    trainer = trainer_of(folder, "orphan", base="gone")
    trainer.run(stop_after=1)
    shutil.rmtree(folder / "gone")
    with pytest.raises(UserError, match="holds adapters alone, .*gone; .*--base-weights"):
        open_source(trainer.checkpoints.directory)


@pytest.mark.parametrize("whole", ["hf", "base"])
def test_weights_beneath_a_whole_model_are_refused(folder, whole):
    with pytest.raises(UserError, match=rf"--base-weights .*other: .*{whole} holds no adapters"):
        open_source(folder / whole, base_weights=folder / "other")


def test_a_rank_above_a_matrix_is_refused(folder):
    model = resolve_initial_weights(run_config(folder, model=GROUPED))[0].model
    largest = model.kv_heads * model.width_per_head
    assert largest < model.hidden_size
    abstract_adapters(model, LoraConfig(rank=largest))
    message = rf"lora.rank={largest + 1} is above .*layers.0.*k_proj.*at most {largest}"
    with pytest.raises(UserError, match=message):
        abstract_adapters(model, LoraConfig(rank=largest + 1, targets=("q_proj", "k_proj")))


def test_a_model_without_adapters_has_none_to_export(folder, tmp_path):
    with pytest.raises(UserError, match="there are none in a hf model"):
        export(folder / "hf", tmp_path / "none", format="peft")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"lora": {"rank": 4}}, "training.initial_weights"),
        ({"lora": {"alpha": 8}}, "only with lora.rank"),
        ({"lora": {"rank": 4, "targets": []}}, "at least one of q_proj"),
        ({"lora": {"rank": 4, "targets": ["q_proj", "q_proj"]}}, "each matrix once"),
        ({"lora": {"rank": 4}, "mesh": {"pipe": 2}}, "mesh.pipe=2 with lora.rank=4"),
    ],
)
def test_settings_that_mean_nothing_are_refused(sections, message):
    weights = {} if message == "training.initial_weights" else {"initial_weights": "a/model"}
    with pytest.raises(UserError, match=message):
        parse_config({"training": weights} | sections, source="test")


def test_only_adapters_have_gradients_and_moments(folder, monkeypatch):
    on_one_device(monkeypatch)
    trainer = trainer_of(folder, "small")
    state = trainer.resume_or_start()
    adapters = sum(x.size for x in jax.tree.leaves(state.parameters))
    model = sum(x.size for x in jax.tree.leaves(trainer._frozen.base))
    moments = sum(x.size for x in jax.tree.leaves(state.optimizer_state) if x.ndim)
    assert moments == 2 * adapters < model
    batch = BatchLayout(trainer.config, trainer.sharding).abstract()
    compiled = trainer._train_step.lower(state, batch, trainer._frozen).compile()
    whole = compiled.cost_analysis()["flops"]
    tokens = 16 * 32
    per_token = whole / tokens
    matrices = sum(
        x.size
        for name, x in named_parameters(trainer._frozen.base).items()
        if name.endswith("_proj") or name == "lm_head"
    )
    assert per_token < 5.4 * matrices  # 4 for two passes without gradients of weights; 6 with them
