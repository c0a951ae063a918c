"""Steps with bad numbers: left out, undone, or the end of the run; against steps done by hand."""

import dataclasses
import json

import numpy as np
import pytest
from run_outcomes import assert_same_state, events, metrics
from runs import run_config

from dongwu_jax import exit_codes
from dongwu_jax.config.faults import BadStepsConfig
from dongwu_jax.training.faults.bad_steps import BadNumbersError, HardwareFaultError
from dongwu_jax.training.faults.recent_steps import RecentSteps
from dongwu_jax.training.stepping import renumbered
from dongwu_jax.training.trainer import Trainer

BATCH, STEPS = 16, 14


def config_in(folder, **sections):
    folder.mkdir(exist_ok=True)
    settings = {
        "model": {"num_layers": 1},
        "training": {"duration": STEPS},
        "checkpoint": {"interval": 5, "keep_last": 10},
    }
    return run_config(folder, **settings, **sections)


class Poisoned:
    """Samples, some of whose batches are spoilt: by numbers that are none, or by wrong labels."""

    def __init__(self, samples, spoil):
        self._samples, self._spoil = samples, spoil

    def __len__(self):
        return len(self._samples)

    def describe(self, index):
        return self._samples.describe(index)

    def __getitem__(self, index):
        sample = self._samples[index]
        row = {"tokens": sample[:-1], "labels": sample[1:]}
        row["loss_mask"] = np.ones(len(row["tokens"]), np.float32)
        how = self._spoil.get(index // BATCH + 1)
        if how == "nan":
            row["loss_mask"] = row["loss_mask"] * np.nan
        elif how == "labels":
            row["labels"] = (row["labels"] * 7 + index) % 128
        elif how == "gone":
            raise ConnectionError("the data is gone")
        return row


def trainer_in(folder, spoil=None, **sections):
    trainer = Trainer(config_in(folder, **sections))
    if spoil:
        samples = Poisoned(trainer.datasets.train, spoil)
        trainer.datasets = dataclasses.replace(trainer.datasets, train=samples)
        if trainer._bad_steps._recorder:
            trainer._bad_steps._recorder._dataset = samples
    return trainer


def by_hand(folder, left_out):
    """The state at the end when some steps are not done at all."""
    trainer = trainer_in(folder)
    state = trainer.resume_or_start()
    for step in range(1, STEPS + 1):
        if step in left_out:
            state = renumbered(state, step)
            continue
        batch = trainer.layout.place(next(trainer._loader(trainer.datasets.train, step - 1, step)))
        state, _ = trainer._train_step(state, batch, trainer._frozen)
    return state


def reported(folder):
    return [line["step"] for line in metrics(folder)]


@pytest.fixture(scope="module")
def left_out_8(tmp_path_factory):
    return by_hand(tmp_path_factory.mktemp("by_hand"), {8})


def test_a_bad_step_is_left_out(left_out_8, tmp_path):
    trainer = trainer_in(tmp_path, {8: "nan"})
    assert_same_state(trainer.run(), left_out_8)
    assert reported(tmp_path) == [step for step in range(1, STEPS + 1) if step != 8]
    (event,) = events(tmp_path, "bad_step")
    assert (event["step"], event["action"], event["in_a_row"]) == (8, "skip", 1)
    assert event["computed_again"]["loss"] == "nan"
    assert events(tmp_path, "end")[0]["reason"] == "finished"

    record = json.loads((tmp_path / "run" / "bad_steps" / "step_8.json").read_text())
    assert record["numbers"]["loss"] == "nan"
    assert len(record["samples"]) == BATCH
    dataset = trainer.datasets.train
    for number, sample in enumerate(record["samples"], 7 * BATCH):
        assert sample["dataset"] == str(tmp_path / "text")
        pieces = [dataset._samples._dataset.get(*piece.values()) for piece in sample["pieces"]]
        np.testing.assert_array_equal(np.concatenate(pieces)[:-1], dataset[number]["tokens"])


@pytest.mark.parametrize("stop", [8, 9])
def test_stops_around_a_bad_step_change_nothing(left_out_8, stop, tmp_path):
    trainer_in(tmp_path, {8: "nan"}).run(stop_after=stop)
    resumed = trainer_in(tmp_path, {8: "nan"})
    assert resumed.checkpoints.latest_step == stop
    assert_same_state(resumed.run(), left_out_8)


SPIKES = {"loss_factor": 1.15, "window": 4}


def test_a_spike_is_left_out_however_the_run_is_cut(tmp_path):
    """Two spikes: that of step 11 is judged by the median of steps before that of step 9."""
    spoil = {2: "labels", 9: "labels", 11: "labels"}  # the first comes before four are known
    straight = trainer_in(tmp_path / "straight", spoil, bad_steps=SPIKES).run()
    assert [event["step"] for event in events(tmp_path / "straight", "bad_step")] == [9, 11]
    for stop in (9, 1):  # after steps 9 and 10
        trainer_in(tmp_path, spoil, bad_steps=SPIKES).run(stop_after=stop)
    assert_same_state(trainer_in(tmp_path, spoil, bad_steps=SPIKES).run(), straight)
    assert reported(tmp_path) == reported(tmp_path / "straight")


def test_rolling_back_leaves_out_what_led_to_it(tmp_path):
    truth = by_hand(tmp_path / "by_hand", {6, 7, 8})  # a checkpoint is written after step 5
    settings = {"action": "rollback"}
    straight = trainer_in(tmp_path / "straight", {8: "nan"}, bad_steps=settings)
    assert_same_state(straight.run(), truth)
    (event,) = events(tmp_path / "straight", "rollback")
    assert (event["step"], event["to"]) == (8, 5)
    # Killed after the rollback and before the next checkpoint: it all happens again.
    with pytest.raises(Exception, match="the data is gone"):
        trainer_in(tmp_path, {8: "nan", 10: "gone"}, bad_steps=settings).run()
    resumed = trainer_in(tmp_path, {8: "nan"}, bad_steps=settings)
    assert resumed.checkpoints.latest_step == 5
    assert_same_state(resumed.run(), truth)
    # Stopped, and saved, between the checkpoint that is due and the bad step.
    stopped = tmp_path / "stopped"
    trainer_in(stopped, {8: "nan"}, bad_steps=settings).run(stop_after=7)
    assert_same_state(trainer_in(stopped, {8: "nan"}, bad_steps=settings).run(), truth)


def test_without_a_checkpoint_a_rollback_leaves_out_the_step_alone(tmp_path):
    truth = by_hand(tmp_path / "by_hand", {3})
    trainer = trainer_in(tmp_path, {3: "nan"}, bad_steps={"action": "rollback"})
    assert_same_state(trainer.run(), truth)


def test_a_run_can_stop_at_the_first(tmp_path):
    trainer = trainer_in(tmp_path, {8: "nan"}, bad_steps={"action": "stop"})
    with pytest.raises(
        BadNumbersError, match="step 8: loss nan.*stopped without saving"
    ) as stopped:
        trainer.run()
    assert stopped.value.exit_code == exit_codes.BAD_NUMBERS
    assert trainer.checkpoints.latest_step == 5
    assert events(tmp_path, "end")[0]["reason"] == "failed"


def test_too_many_in_a_row_end_the_run(tmp_path):
    spoil = {3: "nan", 4: "nan", 6: "nan", 7: "nan", 8: "nan"}
    trainer = trainer_in(tmp_path, spoil, bad_steps={"most_in_a_row": 3})
    with pytest.raises(BadNumbersError, match=r"step 8: .* the last of 3 in a row"):
        trainer.run()
    assert [event["in_a_row"] for event in events(tmp_path, "bad_step")] == [1, 2, 1, 2, 3]


def faulty(trainer, step, spoil):
    """Make a device compute one step wrongly, once."""
    compile_step, calls = trainer._compile, []

    def compiled(state):
        program = compile_step(state)

        def run(state, batch, frozen, gate):
            calls.append(int(state.step) + 1)
            if calls.count(step) == 1 and calls[-1] == step:
                batch = spoil(batch)
            return program(state, batch, frozen, gate)

        return run

    trainer._compile = compiled


def test_a_result_that_does_not_repeat_is_a_hardware_fault(tmp_path):
    trainer = trainer_in(tmp_path)
    faulty(trainer, 8, lambda batch: batch | {"loss_mask": batch["loss_mask"] * np.nan})
    with pytest.raises(HardwareFaultError, match="step 8: loss nan") as stopped:
        trainer.run()
    assert stopped.value.exit_code == exit_codes.HARDWARE_FAULT
    assert trainer.checkpoints.latest_step == 5
    assert events(tmp_path, "bad_step")[0]["action"] == "hardware_fault"


def test_so_is_a_bad_result_with_other_bits(tmp_path):
    trainer = trainer_in(tmp_path, {8: "labels"}, bad_steps=SPIKES)
    faulty(trainer, 8, lambda batch: batch | {"labels": (batch["labels"] + 1) % 128})
    with pytest.raises(HardwareFaultError, match="above the limits"):
        trainer.run()


def test_limits_are_those_of_the_steps_before_the_last():
    recent = RecentSteps(BadStepsConfig(loss_factor=2, gradient_norm_factor=10, window=3))
    for step, loss in enumerate([5.0, 1.0, 3.0, 100.0], 1):
        assert np.isinf(recent.limits(step)).all()
        recent.add(step, loss, loss / 10)
    np.testing.assert_allclose(recent.limits(5), [2 * 3, 10 * 0.3])  # of 5, 1, 3
    recent.add(5, 2.0, 0.2)
    np.testing.assert_allclose(recent.limits(6), [2 * 3, 10 * 0.3])  # of 1, 3, 100
    restored = RecentSteps(BadStepsConfig(loss_factor=2, gradient_norm_factor=10, window=3))
    restored.restore(json.loads(json.dumps(recent.to_json())))
    np.testing.assert_array_equal(restored.limits(6), recent.limits(6))
    only_loss = RecentSteps(BadStepsConfig(loss_factor=2, window=1))
    only_loss.add(1, 4.0, 1.0)
    np.testing.assert_array_equal(only_loss.limits(3), [8, np.inf])
