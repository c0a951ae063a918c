"""What is damage of a checkpoint and what is not, and that nothing is made of damaged weights."""

import errno
import json
import logging
import os
import shutil
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from runs import run_config

from dongwu_jax.errors import UserError
from dongwu_jax.interop.initial_weights import resolve_initial_weights
from dongwu_jax.interop.sources import open_source
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.training.checkpoints import integrity
from dongwu_jax.training.checkpoints.damaged import set_damaged_aside
from dongwu_jax.training.checkpoints.integrity import problems_of
from dongwu_jax.training.checkpoints.store import Checkpoints
from dongwu_jax.training.checkpoints.stored_weights import (
    WeightReader,
    read_model_config,
    read_run_config,
)
from dongwu_jax.training.records.run_log import RunLog
from dongwu_jax.training.state import abstract_state
from dongwu_jax.training.stepping import renumbered
from dongwu_jax.training.trainer import Trainer

ALONE = (0, 1)


def config_in(folder, **sections):
    settings = {
        "model": {"num_layers": 1},
        "training": {"duration": 6},
        "checkpoint": {"interval": 2, "keep_last": 9},
        "logging": {"directory": str(folder / "logs")},
    }
    return run_config(
        folder,
        **{
            name: settings.get(name, {}) | sections.get(name, {}) for name in {*settings, *sections}
        },
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Steps 2, 4 and 6 as a run saves them; done they need not be, which takes longer."""
    folder = tmp_path_factory.mktemp("run")
    trainer = Trainer(config_in(folder))
    state = trainer.resume_or_start()
    trainer._log_start(state, resumed=False)
    draw = np.random.default_rng(0).standard_normal
    for step in (2, 4, 6):
        values = jax.tree.map(
            lambda leaf: jax.device_put(draw(leaf.shape).astype(leaf.dtype), leaf.sharding), state
        )
        trainer._saving.save_last(renumbered(values, step), step)
    trainer._saving.close()
    return folder


@pytest.fixture
def finished(run, tmp_path):
    """A copy of the run, to be damaged."""
    for name in ("run", "logs"):
        shutil.copytree(run / name, tmp_path / name)
    events = tmp_path / "logs" / "events.jsonl"
    events.write_text(events.read_text().replace(str(run), str(tmp_path)))
    return tmp_path


def steps_in(folder):
    return folder / "run" / "checkpoints"


def names_in(checkpoints):
    return {path.name for path in checkpoints.iterdir() if path.name != ".lock"}


def without_checksums(step):
    for file in step.glob("checksums.*"):
        file.unlink()
    return step


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def largest_file(folder):
    return max((file for file in folder.rglob("d/*")), key=lambda file: file.stat().st_size)


def restored(checkpoints, config, step=None):
    sharding = make_sharding(config, jax.devices())
    reader = Checkpoints(config.checkpoint.model_copy(update={"directory": checkpoints}))
    try:
        state, data_state = reader.restore(abstract_state(config, sharding), step)
        return jax.device_get(state), data_state
    finally:
        reader.close()


def empty(file):
    os.truncate(file, 0)


def zeros(file):
    file.write_bytes(bytes(file.stat().st_size))


def gone(file):
    file.unlink()


@pytest.mark.parametrize("damage", [empty, zeros, gone])
def test_without_checksums_all_that_a_resume_needs_is_read(run, damage, tmp_path):
    """Each file is spoilt: that is found, or without all such the same state is restored."""
    config = config_in(run)
    whole, found, needless = steps_in(run) / "6", set(), []
    names = [file.relative_to(whole) for file in sorted(whole.rglob("*")) if file.is_file()]
    for name in (name for name in names if not name.name.startswith("checksums")):
        checkpoints = tmp_path / "checkpoints"
        shutil.copytree(whole, checkpoints / "6")
        damage(without_checksums(checkpoints / "6") / name)
        if problems_of(checkpoints / "6", ALONE):
            found.add(str(name))
        else:
            needless.append(name)
        shutil.rmtree(checkpoints)
    assert found
    shutil.copytree(whole, checkpoints / "6")
    for name in needless:
        damage(checkpoints / "6" / name)
    truth = restored(steps_in(run), config)
    jax.tree.map(np.testing.assert_array_equal, restored(checkpoints, config), truth)
    json_files = {"config/metadata", "data/metadata", "parameters/_METADATA", "optimizer/_METADATA"}
    assert json_files < found
    assert {"parameters/manifest.ocdbt", "optimizer/manifest.ocdbt"} < found


@pytest.mark.parametrize("share", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("item", ["parameters", "optimizer", "config", "data"])
def test_without_checksums_a_missing_item_is_found(finished, item, share):
    step = without_checksums(steps_in(finished) / "6")
    assert problems_of(step, share) == []
    shutil.rmtree(step / item)
    assert f"{item} is missing" in problems_of(step, share)


def test_a_step_without_checksums_and_with_empty_files_is_set_aside(finished, caplog):
    for step, name in (("6", "config/metadata"), ("4", "optimizer/_METADATA")):
        empty(without_checksums(steps_in(finished) / step) / name)
    # Even when the architecture is to be read from the checkpoint.
    config = config_in(finished, training={"duration": 6, "initial_weights": str(finished)})
    assert resolve_initial_weights(config)[0].model == config_in(finished).model
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(config_in(finished))
    assert trainer.checkpoints.latest_step == 2
    assert names_in(steps_in(finished)) == {"2", "4.damaged", "6.damaged"}
    assert "config/metadata: is not JSON" in caplog.text
    assert "optimizer/_METADATA: is not JSON" in caplog.text


def test_a_flipped_bit_is_not_made_a_model_of(finished, caplog):
    step = steps_in(finished) / "6"
    file = largest_file(step / "parameters")
    flip_a_bit(file)
    # An index among the weights is read, and found damaged, as soon as they are opened.
    for read in (
        lambda: WeightReader(step)["final_norm"],
        lambda: open_source(steps_in(finished)).read("final_norm"),
    ):
        with pytest.raises(UserError) as refused:
            read()
        assert f"{file.relative_to(step)} has other content than was written" in str(refused.value)
        assert f"Name an older step, such as {steps_in(finished) / '4'}" in str(refused.value)
    assert "checksums" not in caplog.text
    assert WeightReader(steps_in(finished) / "4")["final_norm"].shape == (32,)


def test_damage_elsewhere_keeps_nobody_from_the_weights(finished):
    flip_a_bit(largest_file(steps_in(finished) / "6" / "optimizer"))
    assert WeightReader(steps_in(finished))["final_norm"].shape == (32,)


def test_settings_are_those_that_were_written(finished):
    settings = steps_in(finished) / "6" / "config" / "metadata"
    settings.write_text(settings.read_text().replace("10000.0", "50000.0"))
    with pytest.raises(UserError, match="config/metadata has other content than was written"):
        read_run_config(steps_in(finished))
    assert read_model_config(steps_in(finished)).rope_theta == 10000.0


def test_weights_without_checksums_are_read_with_a_word(finished, caplog):
    without_checksums(steps_in(finished) / "6")
    with caplog.at_level(logging.WARNING):
        assert WeightReader(steps_in(finished))["final_norm"].shape == (32,)
    assert "6: has no checksums; its weights are taken as they are" in caplog.text


def test_a_rollback_goes_to_the_newest_good_checkpoint_that_was_due(finished, caplog):
    trainer = Trainer(config_in(finished, training={"duration": 9}))
    state = trainer.resume_or_start()
    trainer._saving.save_last(renumbered(state, 7), 7)  # where somebody stopped the run
    flip_a_bit(largest_file(steps_in(finished) / "6" / "optimizer"))
    with caplog.at_level(logging.WARNING):
        state = trainer._saving.roll_back(state, 8)
    assert int(state.step) == 8
    truth, _ = restored(steps_in(finished), trainer.config, 4)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(renumbered(state, 4)), truth)
    assert "rolled back to step 4" in caplog.text
    assert names_in(steps_in(finished)) == {"2", "4", "6.damaged", "7"}
    # Without a good one the present state is the best there is.
    for step in ("2", "4", "7"):
        empty(steps_in(finished) / step / "config" / "metadata")
    assert int(trainer._saving.roll_back(state, 9).step) == 9
    assert "no good checkpoint to roll back to: only step 9 is left out" in caplog.text


@contextmanager
def somebody_else(folder):
    """No permission to read what is forbidden; root has, so it becomes nobody."""
    if os.geteuid() != 0:
        yield
        return
    modes = {path: path.stat().st_mode for path in folder.parents}
    closed = {path: mode for path, mode in modes.items() if mode & 0o055 != 0o055}
    for path, mode in closed.items():
        path.chmod(mode | 0o055)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in closed.items():
            path.chmod(mode)


@pytest.mark.parametrize("forbidden", ["parameters/_METADATA", "parameters", "."])
@pytest.mark.parametrize("checksums", [True, False])
def test_what_may_not_be_read_is_not_damaged(finished, forbidden, checksums):
    step = steps_in(finished) / "6"
    if not checksums:
        without_checksums(step)
    mode = (step / forbidden).stat().st_mode
    with somebody_else(finished):
        (step / forbidden).chmod(0)
        try:
            with pytest.raises(UserError, match="cannot be read: Permission denied. That says not"):
                set_damaged_aside(steps_in(finished), RunLog(None))
            if checksums or forbidden != "parameters/_METADATA":  # which weights do without
                with pytest.raises(UserError, match="cannot be read: Permission denied"):
                    WeightReader(steps_in(finished))["final_norm"]
        finally:
            (step / forbidden).chmod(mode)
    assert names_in(steps_in(finished)) == {"2", "4", "6"}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_nor_is_what_the_storage_does_not_give(finished, number, monkeypatch):
    def failing(file):
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(integrity, "_sum", failing)
    with pytest.raises(UserError, match=os.strerror(number)):
        set_damaged_aside(steps_in(finished), RunLog(None))
    assert names_in(steps_in(finished)) == {"2", "4", "6"}


def test_folders_of_others_are_left_alone(finished, caplog):
    for name in ("1", "2024"):  # Orbax would count and remove them
        (steps_in(finished) / name).mkdir()
        (steps_in(finished) / name / "notes.txt").write_text("mine")
    config = config_in(
        finished, training={"duration": 7}, checkpoint={"interval": 2, "keep_last": 1}
    )
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(config)
    assert trainer.checkpoints.latest_step == 6
    assert "2024: is no checkpoint of a run; it is left alone" in caplog.text
    trainer._saving.save_last(renumbered(trainer.resume_or_start(), 7), 7)
    assert names_in(steps_in(finished)) == {"1", "2024", "7"}
    assert (steps_in(finished) / "1" / "notes.txt").read_text() == "mine"


def test_a_folder_that_is_gone_does_not_begin_a_run_anew(finished):
    steps_in(finished).rename(finished / "elsewhere")
    with pytest.raises(UserError) as refused:
        Trainer(config_in(finished))
    assert f"checkpoint.directory={steps_in(finished)}: holds no checkpoint" in str(refused.value)
    assert "step 6 was saved" in str(refused.value)
    assert "another logging.directory or move events.jsonl away" in str(refused.value)
    another = config_in(finished, checkpoint={"directory": str(finished / "another")})
    assert Trainer(another).checkpoints.latest_step is None
    (finished / "logs" / "events.jsonl").rename(finished / "logs" / "of_before.jsonl")
    assert Trainer(config_in(finished)).checkpoints.latest_step is None


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(finished):
    events = finished / "logs" / "events.jsonl"
    lines = events.read_text().splitlines(keepends=True)
    saved = next(i for i, line in enumerate(lines) if json.loads(line)["event"] == "checkpoint")
    shutil.rmtree(steps_in(finished))
    events.write_text("".join(lines[:saved]))
    assert Trainer(config_in(finished)).checkpoints.latest_step is None
    events.write_text("".join(lines[: saved + 1]))
    with pytest.raises(UserError, match="step 2 was saved"):
        Trainer(config_in(finished))
