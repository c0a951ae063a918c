"""Stops of every kind: the run goes on bit-exactly, or says why it will not."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conversions import convert_to
from run_outcomes import assert_same_state, metrics
from runs import run_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from dongwu_jax.config import dump_config
from dongwu_jax.errors import UserError
from dongwu_jax.interop.sources import open_source
from dongwu_jax.training.checkpoints.folders import tokenizer_folder
from dongwu_jax.training.checkpoints.store import Checkpoints
from dongwu_jax.training.checkpoints.stored_weights import WeightReader, read_run_config
from dongwu_jax.training.trainer import Trainer


def losses(folder: Path) -> list[float]:
    records = metrics(folder)
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == list(range(1, len(steps) + 1))  # nothing twice, nothing missing
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return Trainer(run_config(folder)).run(), losses(folder)


def test_ten_and_ten_are_twenty(straight, tmp_path):
    Trainer(run_config(tmp_path)).run(stop_after=10)
    state = Trainer(run_config(tmp_path)).run()
    assert losses(tmp_path) == straight[1]
    assert_same_state(state, straight[0])


def test_killed_process_goes_on_bit_exactly(straight, tmp_path):
    """SIGKILL at some moment after step 10; the same command then finishes the run."""
    (tmp_path / "run.yaml").write_text(dump_config(run_config(tmp_path)))
    command = [sys.executable, "-m", "dongwu_jax.train", "--config", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    for line in process.stdout:
        if line.startswith("step 12/"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "step 20/20" in output
    assert losses(tmp_path) == straight[1]
    config = run_config(tmp_path)
    resumed = Trainer(config).resume_or_start()
    assert_same_state(resumed, straight[0])


def test_a_finished_run_stays_as_it_is(straight, tmp_path):
    config = run_config(tmp_path)
    Trainer(config).run()
    assert_same_state(Trainer(config).run(), straight[0])
    assert losses(tmp_path) == straight[1]


def test_a_longer_run_keeps_its_first_samples(tmp_path):
    short = run_config(tmp_path, schedule={"type": "constant"})
    Trainer(short).run()
    before = losses(tmp_path)
    Trainer(run_config(tmp_path, schedule={"type": "constant"}, training={"duration": 25})).run()
    assert losses(tmp_path)[:20] == before
    assert len(losses(tmp_path)) == 25


def test_stop_after_zero_saves_the_initial_weights(tmp_path):
    config = run_config(tmp_path)
    Trainer(config).run(stop_after=0)
    assert Checkpoints(config.checkpoint).latest_step == 0


def test_what_a_checkpoint_holds_and_which_are_kept(tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tokenizer))
    config = run_config(
        tmp_path,
        checkpoint={"interval": 2, "keep_last": 2, "keep_every": 8},
        data={"tokenizer": str(tokenizer)},
    )
    Trainer(config).run()
    folder = config.checkpoint.directory
    assert sorted(int(entry.name) for entry in folder.glob("[0-9]*")) == [8, 16, 18, 20]
    assert read_run_config(folder) == config
    kept = tokenizer_folder(folder) / "tokenizer.json"
    assert kept.read_bytes() == tokenizer.read_bytes()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"rope_theta": 5e5}}, "model.rope_theta was 10000.0 and is 500000.0"),
        ({"model": {"num_layers": 3}}, "model.num_layers was 2 and is 3"),
        ({"training": {"global_batch_size": 32}}, "global_batch_size was 16 and is 32"),
        ({"data": {"seed": 7}}, "data.seed was 1234 and is 7"),
        ({"data": {"sequence_length": 16}}, "data.sequence_length was 32 and is 16"),
    ],
)
def test_other_settings_are_refused(stopped, sections, message):
    with pytest.raises(UserError, match=message):
        Trainer(run_config(stopped, **sections)).run()


def test_changed_data_are_accepted_when_told_to(stopped, tmp_path):
    shutil.copytree(stopped / "run", tmp_path / "run")
    changed = {"seed": 7, "accept_changes": True}
    Trainer(run_config(tmp_path, data=changed)).run(stop_after=1)
    assert len(losses(tmp_path)) == 3


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    Trainer(run_config(folder)).run(stop_after=2)
    return folder


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    config = run_config(tmp_path, optimizer={"learning_rate": 1e30, "clip_norm": None})
    with pytest.raises(UserError, match="stopped without saving"):
        Trainer(config).run()
    assert Checkpoints(config.checkpoint).latest_step is None


def test_asynchronous_saving_copies_before_the_state_changes(tmp_path):
    """Weights saved while training goes on are those of their step, not later ones."""
    config = run_config(tmp_path, checkpoint={"interval": 1, "keep_last": 20})
    Trainer(config).run()
    synchronous = {"interval": 1, "keep_last": 20, "asynchronous": False}
    other = run_config(tmp_path, checkpoint={"directory": str(tmp_path / "sync"), **synchronous})
    Trainer(other).run()
    for step in (1, 7, 20):
        one = WeightReader(config.checkpoint.directory / str(step))
        two = WeightReader(other.checkpoint.directory / str(step))
        assert_same_state(dict(one), dict(two))


def test_metrics_of_another_run_are_kept(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    Trainer(run_config(tmp_path)).run(stop_after=1)
    assert (tmp_path / "run" / "metrics.1.jsonl").read_text() == '{"step": 1}\n'
    assert len(losses(tmp_path)) == 1


def test_a_checkpoint_without_tokenizer_can_be_exported(tmp_path):
    config = run_config(tmp_path)
    Trainer(config).run(stop_after=1)
    assert tokenizer_folder(config.checkpoint.directory) is None
    source = open_source(config.checkpoint.directory)
    convert_to(source, tmp_path / "hf", "hf")
    assert (tmp_path / "hf" / "model.safetensors").is_file()
