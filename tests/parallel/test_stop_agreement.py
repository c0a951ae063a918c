"""Processes that are told to stop at different moments stop after the same step."""

import itertools
import random
import socket
import threading

import pytest

from dongwu_jax.parallel.roll_call import Connection
from dongwu_jax.parallel.stop_agreement import StopAgreement
from dongwu_jax.parallel.switchboard import Switchboard


class Line:
    """Two connected ends, each read by a thread, as `Lifelines` reads its connections."""

    def __init__(self):
        with socket.create_server(("localhost", 0)) as server:
            ends = [socket.create_connection(server.getsockname()), server.accept()[0]]
        self.ends = [Connection(end) for end in ends]

    def read(self, end, rank, switchboard):
        def listen():
            try:
                while True:
                    for message in self.ends[end].receive():
                        switchboard.take_in(rank, message)
            except ConnectionError:
                return

        threading.Thread(target=listen, daemon=True).start()


@pytest.fixture
def group():
    """Makes the agreements of so many processes."""
    lines: list[Line] = []

    def make(processes):
        lines.extend(Line() for _ in range(processes - 1))
        first = Switchboard(0, {rank: line.ends[0] for rank, line in enumerate(lines, 1)})
        boards = [
            first,
            *(Switchboard(rank, {0: line.ends[1]}) for rank, line in enumerate(lines, 1)),
        ]
        agreements = [StopAgreement(board) for board in boards]
        for rank, line in enumerate(lines, 1):
            line.read(0, rank, first)
            line.read(1, 0, boards[rank])
        return boards, agreements

    yield make
    for line in lines:
        for end in line.ends:
            end.socket.close()


@pytest.mark.parametrize("seed", range(8))
def test_all_stop_after_the_same_step(group, seed):
    """Threads stand for processes: none is more than two steps ahead, as devices make sure."""
    dice = random.Random(seed)
    _, agreements = group(4)
    done, moved = [0] * 4, threading.Condition()
    told = {rank: dice.randrange(5, 40) for rank in dice.sample(range(4), dice.randrange(1, 5))}

    def run(rank):
        step = 1
        while agreements[rank].may_begin(step):
            with moved:
                done[rank] = step
                moved.notify_all()
                # The result of the step before: there once all have begun it.
                moved.wait_for(lambda before=step - 1: min(done) >= before)
            if told.get(rank) == step:
                agreements[rank].request(f"told process {rank}")
            step += 1

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert len(set(done)) == 1
    assert done[0] >= min(told.values())
    assert len({agreement.reason for agreement in agreements}) == 1


def test_a_process_that_has_not_begun_does_what_the_others_have(group):
    _, agreements = group(2)
    assert agreements[0].may_begin(1)
    assert agreements[0].may_begin(2)
    agreements[1].request("told")  # heard at some later step
    last = next(step for step in itertools.count(3) if not agreements[0].may_begin(step)) - 1
    assert all(agreements[1].may_begin(step) for step in range(1, last + 1))
    assert not agreements[1].may_begin(last + 1)


def test_nobody_is_held_up_while_nobody_wants_to_stop(group):
    _, agreements = group(2)
    assert all(agreements[0].may_begin(step) for step in range(1, 1000))
    assert agreements[0].reason is None


def test_a_process_alone_agrees_with_itself():
    agreement = StopAgreement(Switchboard())
    assert not agreement.has_begun
    assert agreement.may_begin(7)
    agreement.request("told")
    assert not agreement.may_begin(8)
    assert agreement.reason == "told"


def test_a_question_leaves_out_who_does_not_answer(group):
    boards, _ = group(3)
    for rank, board in enumerate(boards):
        board.on_question("where", lambda rank=rank: rank * 10)
    assert boards[0].ask_all("where", 20) == {0: 0, 1: 10, 2: 20}
    boards[2].on_question("where", threading.Event().wait)
    assert boards[0].ask_all("where", 0.2) == {0: 0, 1: 10}
