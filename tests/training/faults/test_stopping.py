"""Signals and time limits: the step in progress is finished, the state saved, the run goes on."""

import itertools
import os
import signal
import threading

import pytest
from run_outcomes import assert_same_state, events, metrics
from runs import run_config

from dongwu_jax import exit_codes
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.stop_agreement import StopAgreement
from dongwu_jax.parallel.switchboard import Switchboard
from dongwu_jax.training.faults.stopping import StopSignals, stop_after, time_limit
from dongwu_jax.training.trainer import Trainer


class Endings(list):
    """Takes the place of the end of the process."""

    def __init__(self):
        self.said = threading.Event()

    def __call__(self, reason, exit_code):
        self.append((reason, exit_code))
        self.said.set()


@pytest.fixture(autouse=True)
def default_signals():
    yield
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return Trainer(run_config(folder)).run(), loss_curve(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_run_goes_on_bit_exactly(number, straight, tmp_path):
    agreement, endings = StopAgreement(Switchboard()), Endings()
    trainer = Trainer(run_config(tmp_path), agreement=agreement)
    at_step(agreement, 7, lambda: os.kill(os.getpid(), number))
    with StopSignals(agreement, endings):
        stopped = int(trainer.run().step)
    assert agreement.reason == number.name
    assert 7 <= stopped < 20
    assert not endings
    assert signal.getsignal(number) == signal.SIG_IGN  # saved: nothing is to interrupt its end
    stop = events(tmp_path, "stop")[0]
    assert (stop["reason"], stop["step"]) == (number.name, stopped)

    resumed = Trainer(run_config(tmp_path))
    assert resumed.checkpoints.latest_step == stopped
    state = resumed.run()
    assert_same_state(state, straight[0])
    assert loss_curve(tmp_path) == straight[1]


def loss_curve(folder):
    return [line["loss"] for line in metrics(folder)]


def at_step(agreement, step, act):
    """Act when a step's turn comes, and go on when the thread that listens to signals has heard."""
    may_begin = agreement.may_begin

    def watched(number):
        if number == step:
            assert may_begin(number)  # it has begun, for the signal to have something to save
            act()
            while agreement.reason is None:
                threading.Event().wait(0.01)
        return may_begin(number)

    agreement.may_begin = watched


def test_a_second_signal_ends_at_once(monkeypatch):
    monkeypatch.setattr("dongwu_jax.training.faults.stopping._SECONDS_OF_ONE_SIGNAL", -1.0)
    agreement, endings = StopAgreement(Switchboard()), Endings()
    with StopSignals(agreement, endings):
        assert agreement.may_begin(1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert any(not agreement.may_begin(step) for step in itertools.count(2))
        assert not endings
        os.kill(os.getpid(), signal.SIGTERM)
        assert endings.said.wait(20)
    assert endings == [("a second signal, SIGTERM: not saved", 128 + signal.SIGTERM)]


def test_the_same_signal_from_two_sides_is_one():
    agreement, endings = StopAgreement(Switchboard()), Endings()
    signals = StopSignals(agreement, endings)
    assert agreement.may_begin(1)
    for _ in range(3):
        signals._take(signal.SIGTERM)
    assert not endings


def test_before_the_first_step_there_is_nothing_to_save():
    endings = Endings()
    with StopSignals(StopAgreement(Switchboard()), endings):
        os.kill(os.getpid(), signal.SIGTERM)
        assert endings.said.wait(20)
    assert endings == [("SIGTERM before the first step: nothing to save", exit_codes.FAILED)]


def test_a_time_limit_lets_the_first_step_happen(tmp_path):
    agreement = StopAgreement(Switchboard())
    stop_after(agreement, 0.0)
    state = Trainer(run_config(tmp_path), agreement=agreement).run()
    assert agreement.reason == "--exit-after"
    assert 1 <= int(state.step) < 20


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h50m", 13800), ("90s", 90), ("1d2h", 93600), ("47h59m30s", 172770)]
)
def test_time_limits(text, seconds):
    assert time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "h", "-1h", "0s", "1.5h", "30m2h", "9999999d"])
def test_bad_time_limits_are_refused(text):
    with pytest.raises(UserError, match="as in 3h50m"):
        time_limit(text)
