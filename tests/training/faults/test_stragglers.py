"""Who keeps the others waiting, told by what each process does on its own."""

import json
import logging

import pytest
from run_outcomes import events

from dongwu_jax.parallel.peers import Peers
from dongwu_jax.parallel.switchboard import Switchboard
from dongwu_jax.training.faults import stragglers
from dongwu_jax.training.faults.stragglers import Stragglers
from dongwu_jax.training.records.run_log import RunLog

HOSTS = {0: "a", 1: "b", 2: "c"}


class LineTo:
    """Takes what a process sends to the first straight to that one's switchboard."""

    def __init__(self, first, rank):
        self._first, self._rank = first, rank

    def send(self, message):
        self._first.take_in(self._rank, json.loads(json.dumps(message)))


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Three processes that tell each other everything at once."""
    monkeypatch.setattr(stragglers, "_SECONDS_BETWEEN_NOTICES", 0.0)
    monkeypatch.setattr(stragglers, "_SECONDS_BETWEEN_RECORDS", 0.0)
    log = RunLog(tmp_path / "run" / "events.jsonl")
    first = Switchboard(0, {})
    boards = [first, *(Switchboard(rank, {0: LineTo(first, rank)}) for rank in (1, 2))]
    return [
        Stragglers(Peers(rank, HOSTS, board), log, share=0.2) for rank, board in enumerate(boards)
    ]


def test_a_process_that_delays_steps_is_named(group, tmp_path, caplog):
    own = {0: 0.1, 1: 4.1, 2: 0.2}
    with caplog.at_level(logging.WARNING):
        for rank, each in enumerate(group):
            each.step_times(50, steps=10, own_seconds=own[rank] * 10, seconds=100.0)
    assert "process 1 (b) keeps the others waiting: about step 50 it spends 4.100 s" in caplog.text
    (record,) = events(tmp_path, "step_times")
    assert record["seconds"] == pytest.approx({"a/0": 0.1, "b/1": 4.1, "c/2": 0.2})
    (named,) = events(tmp_path, "straggler")
    assert (named["process"], named["host"], named["step_seconds"]) == (1, "b", 10.0)


def test_work_behind_the_devices_is_nobody_s_delay(group, tmp_path):
    for rank, each in enumerate(group):  # ten times as much, but 1% of a step
        each.step_times(50, steps=1, own_seconds=0.1 if rank == 2 else 0.01, seconds=10.0)
    assert len(events(tmp_path, "step_times")) == 1
    assert not events(tmp_path, "straggler")


def test_times_add_up_until_they_are_told(group, tmp_path, monkeypatch):
    monkeypatch.setattr(stragglers, "_SECONDS_BETWEEN_NOTICES", 1e9)
    for each in group:
        each.step_times(1, steps=1, own_seconds=1.0, seconds=2.0)
    assert not (tmp_path / "run" / "events.jsonl").exists()
    monkeypatch.setattr(stragglers, "_SECONDS_BETWEEN_NOTICES", 0.0)
    for each in group:
        each.step_times(2, steps=3, own_seconds=7.0, seconds=9.0)
    (record,) = events(tmp_path, "step_times")
    assert set(record["seconds"].values()) == {2.0}  # 8 seconds of 4 steps


def test_a_process_alone_keeps_nobody_waiting(tmp_path):
    alone = Stragglers(Peers(), RunLog(tmp_path / "run" / "events.jsonl"), share=0.2)
    alone.step_times(1, steps=1, own_seconds=1.0, seconds=1.0)
    assert not (tmp_path / "run" / "events.jsonl").exists()
