"""Fine-tuning on packed conversations: the same as on each of them alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_outcomes import assert_same_state, metrics
from runs import run_config

from dongwu_jax.data.chat_samples import TOKENS, TRAINED
from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter
from dongwu_jax.errors import UserError
from dongwu_jax.models.attention import causal_attention
from dongwu_jax.models.parameters import bind
from dongwu_jax.training.trained_weights import Frozen
from dongwu_jax.training.trainer import Trainer

LENGTH = 32


def write_conversations(prefix, count=200):
    """Random tokens with a random part trained; 4 to 30 tokens each."""
    random = np.random.default_rng(0)
    tokens_prefix, marks_prefix = (f"{prefix}_{name}" for name in (TOKENS, TRAINED))
    with (
        IndexedDatasetWriter(tokens_prefix, np.uint16) as tokens,
        IndexedDatasetWriter(marks_prefix, np.uint8) as marks,
    ):
        for _ in range(count):
            length = int(random.integers(4, 30))
            trained = np.arange(length) >= random.integers(1, length)
            tokens.add_document(random.integers(3, 128, length).astype(np.uint16), [length])
            marks.add_document(trained.astype(np.uint8), [length])
    return f"{prefix}_{TOKENS}"


def chat_run(folder, **sections):
    folder.mkdir(exist_ok=True)
    if not (folder / f"sft_{TOKENS}.idx").exists():
        write_conversations(folder / "sft")
    chat = {"blend": str(folder / f"sft_{TOKENS}"), "format": "chat", "split": "1,0,0"}
    settings = {"training": {"micro_batch_size": 2, "duration": 12}} | sections
    return run_config(folder, data=chat, **settings)


def alone(config, weights, batch):
    """Sum of losses of every conversation, each run by itself."""

    def loss(weights):
        model = bind(config.model, weights)
        total = 0.0
        rows = {name: x.reshape(-1, LENGTH) for name, x in batch.items()}
        for row in range(len(rows["tokens"])):
            for segment in range(1, rows["segments"][row].max() + 1):
                here = rows["segments"][row] == segment
                tokens, labels, mask = (
                    jnp.asarray(rows[name][row][here])[None]
                    for name in ("tokens", "labels", "loss_mask")
                )
                positions = jnp.arange(tokens.shape[1])[None]
                attend = partial(causal_attention, implementation="xla")
                hidden = model.hidden_states(model.embed(tokens), positions, attend)
                chances = jax.nn.log_softmax(model.logits(hidden))
                chosen = jnp.take_along_axis(chances, labels[..., None], axis=-1)[..., 0]
                total = total - jnp.sum(chosen * mask)
        return total

    return jax.value_and_grad(loss)(weights)


@pytest.mark.parametrize("mesh", [{}, {"tensor": 2, "fsdp": 2, "data": 2}], ids=["data", "all"])
def test_packed_loss_and_gradients_are_those_of_each_alone(mesh, tmp_path):
    config = chat_run(
        tmp_path,
        mesh=mesh,
        training={"micro_batch_size": 1, "global_batch_size": 8, "loss_chunk_tokens": 16},
    )
    trainer = Trainer(config)
    weights = trainer.resume_or_start().parameters
    local = next(trainer._loader(trainer.datasets.train, 0, 1))
    assert local["segments"].max() > 1  # packed, or equality says nothing
    objective = trainer._objective("cpu")
    losses, gradients = jax.jit(objective.loss_and_gradients)(
        weights, trainer.layout.place(local), jnp.float32(1), Frozen()
    )
    one = jax.devices()[0]
    expected, expected_gradients = alone(config, jax.device_put(weights, one), local)
    np.testing.assert_allclose(losses["loss"], expected, rtol=1e-5)
    for found, wanted in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=2e-5 * float(jnp.abs(wanted).max()) + 1e-6)


def test_a_conversation_never_sees_its_neighbours(tmp_path):
    config = chat_run(tmp_path)
    trainer = Trainer(config)
    weights = trainer.resume_or_start().parameters
    local = next(trainer._loader(trainer.datasets.train, 0, 1))
    loss = jax.jit(trainer._objective("cpu").loss)
    second = local["segments"] == 2
    only_second = local | {"loss_mask": local["loss_mask"] * second}
    changed = only_second | {"tokens": np.where(second, local["tokens"], 5)}
    losses = [
        float(loss(weights, trainer.layout.place(batch), Frozen()))
        for batch in (only_second, changed)
    ]
    assert losses[0] > 1
    assert losses[0] == losses[1]


def test_a_run_learns_and_resumes_bit_exactly(tmp_path):
    whole = Trainer(chat_run(tmp_path / "whole")).run()
    curve = [line["loss"] for line in metrics(tmp_path / "whole")]
    assert curve[-1] < curve[0]
    Trainer(chat_run(tmp_path / "parts")).run(stop_after=5)
    parts = Trainer(chat_run(tmp_path / "parts")).run()
    assert_same_state(whole, parts)


def test_a_changed_mark_is_noticed(tmp_path):
    Trainer(chat_run(tmp_path)).run(stop_after=10)
    marks = tmp_path / f"sft_{TRAINED}.bin"
    content = bytearray(marks.read_bytes())
    content[0] ^= 1
    marks.write_bytes(content)
    with pytest.raises(UserError, match="data.blend, sft_chat: content was"):
        Trainer(chat_run(tmp_path)).run()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"mesh": {"pipe": 2}}, "mesh.pipe=2 with data.format=chat"),
        ({"mesh": {"context": 2}}, "mesh.context=2 with data.format=chat"),
        ({"distillation": {"cache": "a"}}, "distillation.cache=a with data.format=chat"),
        ({"precision": {"attention": "cudnn"}}, "cudnn"),
    ],
)
def test_layouts_that_do_not_know_packing_are_refused(sections, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Trainer(chat_run(tmp_path, **sections))
