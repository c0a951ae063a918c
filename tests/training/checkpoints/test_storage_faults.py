"""Full disks, folders that cannot be written, damaged files: the run goes on or says why not."""

import logging
import os
import shutil
from contextlib import contextmanager

import numpy as np
import orbax.checkpoint as ocp
import pytest
from run_outcomes import assert_same_state, events, metrics
from runs import run_config
from storage_limits import files_of_at_most

from dongwu_jax.errors import UserError
from dongwu_jax.training.checkpoints.integrity import is_verifiable, problems_of
from dongwu_jax.training.checkpoints.stored_weights import WeightReader
from dongwu_jax.training.faults.run_lock import LOCK_FILE
from dongwu_jax.training.trainer import Trainer

ALONE = (0, 1)


def config_in(folder, keep_last=9, **sections):
    folder.mkdir(exist_ok=True)
    settings = {"model": {"num_layers": 1}, "training": {"duration": 12}}
    checkpoint = {"interval": 3, "keep_last": keep_last}
    return run_config(folder, **settings, checkpoint=checkpoint, **sections)


def checkpoints_in(folder):
    return folder / "run" / "checkpoints"


def names_in(checkpoints):
    return {path.name for path in checkpoints.iterdir()} - {LOCK_FILE}


def losses(folder):
    return {line["step"]: line["loss"] for line in metrics(folder)}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return Trainer(config_in(folder)).run(), folder


@pytest.fixture
def finished(straight, tmp_path):
    """A copy of a finished run, to be damaged."""
    shutil.copytree(straight[1] / "run", tmp_path / "run")
    return tmp_path


def during(trainer, steps, make_fault):
    """Have a fault while a run saves after some steps."""
    save = trainer._saving._save

    def faulty(state, step):
        if step not in steps:
            return save(state, step)
        with make_fault():
            save(state, step)
            trainer.checkpoints._completing.join()  # which waits for what is written

    trainer._saving._save = faulty


def test_a_full_disk_is_borne_and_the_next_checkpoint_written(straight, tmp_path, caplog):
    trainer = Trainer(config_in(tmp_path))
    during(trainer, {6}, lambda: files_of_at_most(4096))
    with caplog.at_level(logging.WARNING):
        state = trainer.run()
    assert_same_state(state, straight[0])
    assert names_in(checkpoints_in(tmp_path)) == {"3", "9", "12"}
    assert "the checkpoint of step 6 could not be written" in caplog.text
    assert "The run goes on; the newest checkpoint is that of step 3" in caplog.text
    (event,) = events(tmp_path, "checkpoint_failed")
    assert event["newest"] == 3


def test_a_checkpoint_that_fails_leaves_no_older_one_behind(tmp_path):
    trainer = Trainer(config_in(tmp_path, keep_last=2))
    during(trainer, {9}, lambda: files_of_at_most(4096))
    trainer.run()
    assert names_in(checkpoints_in(tmp_path)) == {"6", "12"}


def test_a_first_or_a_last_checkpoint_that_fails_ends_the_run(tmp_path):
    first = Trainer(config_in(tmp_path / "first"))
    during(first, {3}, lambda: files_of_at_most(4096))
    with pytest.raises(UserError, match="the checkpoint of step 3 could not be written"):
        first.run()
    last = Trainer(config_in(tmp_path / "last"))
    during(last, {12}, lambda: files_of_at_most(4096))
    with pytest.raises(UserError, match="the checkpoint of step 12 could not be written"):
        last.run()
    assert Trainer(config_in(tmp_path / "last")).checkpoints.latest_step == 9


@contextmanager
def vanished(folder):
    """A folder that is a file for a while."""
    away = folder.with_name("away")
    folder.rename(away)
    folder.write_text("")
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


def test_a_folder_that_vanishes_for_a_while_is_borne(straight, tmp_path):
    trainer = Trainer(config_in(tmp_path))
    during(trainer, {6}, lambda: vanished(checkpoints_in(tmp_path)))
    assert_same_state(trainer.run(), straight[0])
    assert trainer.checkpoints.latest_step == 12
    assert not (checkpoints_in(tmp_path) / "6").exists()


def test_metrics_that_cannot_be_written_do_not_end_the_run(straight, tmp_path, caplog):
    trainer = Trainer(config_in(tmp_path))
    finished, full = trainer._progress.step_finished, files_of_at_most(1)

    def watched(step, metrics, waited):
        if step == 4:
            trainer._saving.settle()
            full.__enter__()
        finished(step, metrics, waited)
        if step == 5:
            full.__exit__(None, None, None)

    trainer._progress.step_finished = watched
    with caplog.at_level(logging.WARNING):
        assert_same_state(trainer.run(), straight[0])
    assert caplog.text.count("metrics.jsonl: cannot be written: [Errno 27]") == 1
    assert losses(tmp_path) == losses(straight[1])  # those, too: they waited in memory


def largest_file(step):
    files = (file for file in step.rglob("ocdbt.process_*/d/*") if file.is_file())
    return max(files, key=lambda file: file.stat().st_size)


def cut_short(step):
    file = largest_file(step)
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(step):
    file = largest_file(step)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove(step):
    largest_file(step).unlink()


def remove_an_item(step):
    shutil.rmtree(step / "optimizer")


def garble_the_checksums(step):
    next(step.glob("checksums.*")).write_text("{}")


@pytest.mark.parametrize(
    "damage", [cut_short, flip_a_bit, remove, remove_an_item, garble_the_checksums]
)
def test_every_damage_is_found(finished, damage):
    step = checkpoints_in(finished) / "12"
    assert problems_of(step, ALONE) == []
    assert is_verifiable(step)
    damage(step)
    assert problems_of(step, ALONE)
    # Of two processes one at least finds it.
    assert problems_of(step, (0, 2)) or problems_of(step, (1, 2))


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(straight, finished, caplog):
    flip_a_bit(checkpoints_in(finished) / "12")
    cut_short(checkpoints_in(finished) / "9")
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(config_in(finished))
    assert trainer.checkpoints.latest_step == 6
    assert "has other content than was written" in caplog.text
    assert "bytes instead of" in caplog.text
    assert_same_state(trainer.run(), straight[0])
    assert losses(finished) == losses(straight[1])
    assert names_in(checkpoints_in(finished)) == {"3", "6", "9", "12", "9.damaged", "12.damaged"}
    assert [event["step"] for event in events(finished, "damaged_checkpoint")] == [12, 9]


def test_a_run_without_a_good_checkpoint_does_not_start_anew(finished):
    for step in checkpoints_in(finished).glob("[0-9]*"):
        if step.name != "12":
            shutil.rmtree(step)
    flip_a_bit(checkpoints_in(finished) / "12")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no good checkpoint is left, only 12\.damaged"):
            Trainer(config_in(finished))


def without_checksums(step):
    for file in step.glob("checksums.*"):
        file.unlink()


def test_a_checkpoint_whose_process_was_killed_before_its_checksums_is_read_through(
    finished, caplog
):
    for name in ("12", "9"):
        without_checksums(checkpoints_in(finished) / name)
    for file in (checkpoints_in(finished) / "12" / "optimizer").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(config_in(finished))
    assert trainer.checkpoints.latest_step == 9
    assert "12: is damaged" in caplog.text
    assert "9: has no checksums" in caplog.text


def test_orbax_alone_and_our_readers_take_no_notice_of_checksums(straight):
    step = checkpoints_in(straight[1]) / "12"
    with ocp.StandardCheckpointer() as reader:
        restored = reader.restore(step / "parameters")
    weights = WeightReader(step)
    assert restored.keys() == set(weights)
    for name, array in restored.items():
        np.testing.assert_array_equal(array, weights[name])
