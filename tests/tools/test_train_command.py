"""What a user sees of bad settings and data of a training run."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_lines import cut_short, exit_code, failure

from dongwu_jax.train import main as train


@pytest.fixture
def config(tmp_path, dataset, tokenizer):
    """A YAML file of a run that works."""
    settings = {
        "model": {
            "vocab_size": 400,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_layers": 1,
            "num_heads": 8,
            "max_position_embeddings": 64,
        },
        "data": {
            "blend": str(dataset),
            "split": "90,10,0",
            "sequence_length": 32,
            "tokenizer": str(tokenizer),
            "index_cache": str(tmp_path / "cache"),
        },
        "training": {"duration": 2, "global_batch_size": 8},
        "checkpoint": {"directory": str(tmp_path / "run" / "checkpoints")},
        "logging": {"tensorboard": False},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def refused(capsys, config):
    """The message of a run with these arguments, which must not leave a checkpoint."""

    def run(*arguments):
        message = failure(capsys, train, "--config", config, *arguments)
        assert not list(config.parent.glob("run/checkpoints/[0-9]*"))
        return message

    return run


def test_bad_files(capsys, tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("model:\n  num_layers: [1\n")
    (tmp_path / "latin.yaml").write_bytes(b"caf\xe9")
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "base.yaml").write_text("base: gone.yaml\n")
    for path, expected in [
        (tmp_path / "gone.yaml", "gone.yaml: cannot be read: No such file"),
        (tmp_path, f"{tmp_path}: cannot be read: Is a directory"),
        (tmp_path / "list.yaml", "list.yaml: must hold sections"),
        (tmp_path / "broken.yaml", "broken.yaml: is not YAML"),
        (tmp_path / "latin.yaml", "latin.yaml: is not UTF-8 at byte 3"),
        (tmp_path / "empty.yaml", "data.blend is empty"),
        (tmp_path / "base.yaml", "gone.yaml: cannot be read"),
    ]:
        place = f"checkpoint.directory={tmp_path / 'checkpoints'}"
        message = failure(capsys, train, "--config", path, place, "training.global_batch_size=8")
        assert expected in message
        assert message.count("\n") == 1
    assert "--config is missing" in failure(capsys, train)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.num_layer=4", "unknown setting model.num_layer; did you mean model.num_layers?"),
        ("modle.num_layers=4", "unknown setting modle; did you mean model?"),
        ("model.num_layers", "write section.field=value"),
        ("=4", "write section.field=value"),
        ("model.num_layers=two", "model.num_layers='two'"),
        ("model.num_layers=[", "the value is not YAML"),
        ("model.num_heads=7", "hidden_size=32 is not a multiple of num_heads=7"),
        ("training.duration=0", "training.duration=0 steps is shorter than one step"),
        ("training.duration=soon", "'soon' is not a duration"),
        ("training.seed=99999999999999999999", "training.seed="),
        ("training.global_batch_size=12", "global_batch_size=12 is not a multiple of"),
        ("training.micro_batch_size=3", "micro_batch_size=3"),
        ("training.initial_weights=/gone", "/gone: no such file or folder"),
        ("mesh.fsdp=3", "= 3 does not divide the 8 devices"),
        ("mesh.tensor=16", "= 16 does not divide the 8 devices"),
        ("mesh.data=0", "data=0"),
        ("sharding.rules.mpl=[tensor]", "unknown logical axis 'mpl'; did you mean mlp?"),
        ("sharding.rules.mlp=[tensr]", "unknown mesh axis 'tensr'"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate=nan"),
        ("precision.attention=cudnn", "cuDNN needs a GPU"),
        ("data.sequence_length=128", "longer than model.max_position_embeddings=64"),
        ("data.blend=/gone", "/gone.idx: cannot be read"),
        ("data.split=half", "data.split='half'"),
        ("data.tokenizer=/gone.model", "/gone.model: no such tokenizer"),
        ("data.order=random", "data.order='random'"),
        ("logging.wandb_project=x", "wandb is not installed"),
    ],
)
def test_bad_settings(refused, override, expected):
    assert expected in refused(override)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.eod_mask_loss=true", "data.eod_token=400"], "eod_token=400 is not below"),
        (["evaluation.interval=1", "data.split=100,0,0"], "has no share for validation"),
        (["evaluation.interval=1", "data.split=9999,1,0"], "its validation split is empty"),
        (["evaluation.interval=1", "data.validation_blend=[]"], "data.validation_blend is empty"),
        (
            ["data.sequence_length=50000", "model.max_position_embeddings=50000"],
            "fewer than one sample of data.sequence_length=50000 + 1",
        ),
        (["data.order=megatron", "data.seed=5000000000"], "data.seed=5000000000"),
        (["--stop-after", "-1"], "--stop-after -1: must be 0 or more"),
    ],
)
def test_settings_that_do_not_fit_together(refused, overrides, expected):
    assert expected in refused(*overrides)


def test_data_prefix_with_its_ending(refused, dataset):
    message = refused(f"data.blend={dataset}.bin")
    assert f"write the path without its ending: {dataset}" in message


@pytest.mark.parametrize("ending", ["bin", "idx"])
def test_truncated_data(refused, dataset, tmp_path, ending):
    for each in ("bin", "idx"):
        shutil.copy(f"{dataset}.{each}", tmp_path / f"cut.{each}")
    cut_short(tmp_path / f"cut.{ending}")
    assert f"{tmp_path}/cut.{ending}" in refused(f"data.blend={tmp_path}/cut")


def test_tokens_outside_the_vocabulary(refused):
    message = refused("model.vocab_size=64", "data.tokenizer=null")
    assert "model.vocab_size=64; the data was made with another tokenizer" in message


def test_tokenizer_of_another_model(refused, large_tokenizer, tokenizer, tmp_path):
    message = refused(f"data.tokenizer={large_tokenizer}")
    assert f"{large_tokenizer}: the tokenizer has 500 tokens" in message
    broken = cut_short(Path(shutil.copy(tokenizer, tmp_path / "cut.model")))
    assert "cut.model: is not a SentencePiece model" in refused(f"data.tokenizer={broken}")


def test_validation_data_that_would_run_out(refused, dataset, tmp_path):
    for ending in ("bin", "idx"):
        shutil.copy(f"{dataset}.{ending}", tmp_path / f"other.{ending}")
    message = refused(
        f"data.validation_blend=[{dataset}, {tmp_path}/other]",
        "data.order=megatron",
        "evaluation.interval=1",
        "evaluation.batches=1000",
    )
    assert "evaluation.batches=1000: the validation data has" in message


def test_unwritable_outputs(refused, corpus):
    for path in (corpus, corpus / "below"):
        assert f"checkpoint.directory={path}" in refused(f"checkpoint.directory={path}")
    assert f"logging.directory={corpus}" in refused(f"logging.directory={corpus}")


def test_a_metrics_file_of_something_else_is_not_rewritten(capsys, config, tmp_path):
    logs = tmp_path / "logs"
    command = ("--config", config, f"logging.directory={logs}")
    assert not exit_code(train, *command, "--stop-after", "1")
    (logs / "metrics.jsonl").write_text('{"accuracy": 1}\n')
    message = failure(capsys, train, *command)
    assert "metrics.jsonl: has no line that is metrics of a run" in message
    assert (logs / "metrics.jsonl").read_text() == '{"accuracy": 1}\n'


def test_a_damaged_checkpoint_is_not_continued(capsys, config):
    assert not exit_code(train, "--config", config, "--stop-after", "1")
    step = config.parent / "run" / "checkpoints" / "1"
    changed = failure(capsys, train, "--config", config, "model.num_layers=2")
    assert "model.num_layers was 1 and is 2" in changed
    for path in step.glob("optimizer/ocdbt.process_0/d/*"):
        cut_short(path)
    message = failure(capsys, train, "--config", config)
    assert f"{step.parent}: no good checkpoint is left, only 1.damaged" in message


def test_the_length_of_a_model_is_that_of_its_weights(capsys, config, model, tmp_path):
    """Not the default length, which the model section has before the weights are read."""
    longer = Path(shutil.copytree(model, tmp_path / "longer"))
    settings = json.loads((longer / "config.json").read_text())
    settings |= {"max_position_embeddings": 8192, "max_sequence_length": 8192}
    (longer / "config.json").write_text(json.dumps(settings))
    run = yaml.safe_load(config.read_text())
    del run["model"]
    run["data"]["sequence_length"] = 8192
    run["training"]["initial_weights"] = str(longer)
    config.write_text(yaml.safe_dump(run))
    assert not exit_code(train, "--config", config, "--print-config")
    assert "max_position_embeddings: 8192" in capsys.readouterr().out
    message = failure(capsys, train, "--config", config, "data.sequence_length=9000")
    assert "longer than model.max_position_embeddings=8192" in message


SIGBUS = """
import os, signal, sys
from dongwu_jax import train
train._train = lambda *_: os.kill(os.getpid(), signal.SIGBUS)
train.main(sys.argv[1:])
"""


def test_a_bus_error_shows_where_it_was(config):
    """As where a data file on the memory map gets shorter."""
    command = [sys.executable, "-c", SIGBUS, "--config", str(config)]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in ended.stderr
    assert 'File "<string>", line 4' in ended.stderr
