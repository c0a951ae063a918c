"""Processes that come, stay away, or cannot be part of the run; each is a thread here."""

import json
import socket
import threading
import time
from dataclasses import replace

import pytest

from dongwu_jax.errors import UserError
from dongwu_jax.parallel.cluster_detection import Cluster
from dongwu_jax.parallel.roll_call import call_roll, describe_hosts


@pytest.fixture
def cluster():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return Cluster("test", f"localhost:{port}", 3, 0)


def outcomes(clusters, timeout_seconds):
    """What each process gets from the roll call: an Attendance or the message of its error."""
    results = [None] * len(clusters)

    def take_part(index):
        try:
            results[index] = call_roll(clusters[index], timeout_seconds)
        except UserError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=take_part, args=(i,)) for i in range(len(clusters))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_all_come(cluster):
    here = outcomes([replace(cluster, process_id=rank) for rank in range(3)], 20)
    for attendance in here:
        assert attendance.hosts == dict.fromkeys(range(3), socket.gethostname())
    assert set(here[0].connections) == {1, 2}
    assert set(here[1].connections) == {0}


def test_those_that_do_not_come_are_named(cluster):
    several = replace(cluster, num_processes=6)
    messages = outcomes([several, replace(several, process_id=2)], 0.5)
    for message in messages:
        assert "processes 1, 3-5 of 6 did not come within 0.5 s" in message
        assert f"processes 0, 2 on {socket.gethostname()}" in message
        assert "loopback" in message


def test_a_coordinator_that_does_not_answer(cluster):
    (message,) = outcomes([replace(cluster, process_id=1)], 0.5)
    assert f"process 0 did not answer at {cluster.coordinator_address} within 0.5 s" in message
    assert "loopback" in message


def test_two_of_the_same_number(cluster):
    twice = replace(cluster, process_id=1)
    results = outcomes([cluster, twice, twice], 20)
    assert all("two processes say they are process 1" in result for result in results)


def test_different_numbers_of_processes(cluster):
    results = outcomes([cluster, replace(cluster, process_id=1, num_processes=4)], 20)
    assert all("of 4 processes, process 0" in result for result in results)


def test_a_port_in_use(cluster):
    with socket.create_server(("", cluster.coordinator[1])):
        (message,) = outcomes([cluster], 1)
    assert "cannot listen on port" in message


OURS = {"greeting": "dongwu_jax", "process": 1, "host": "a", "processes": 3}


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[1]\n",
        b'{"greeting": 1}\n',
        b"[" * 100_000 + b"\n",
        b"9" * 10_000 + b"\n",
        b'{"greeting": "dongwu_jax"}\n',
        *(
            json.dumps(OURS | change).encode() + b"\n"
            for change in (
                {"process": "1"},
                {"process": True},
                {"process": [1]},
                {"process": 3},
                {"process": 0},
                {"process": -1},
                {"processes": None},
                {"host": {}},
                {"host": "\x1b[2J"},
            )
        ),
    ],
    ids=lambda noise: noise[-40:],
)
def test_strangers_are_ignored(cluster, noise):
    here = []
    first = threading.Thread(target=lambda: here.append(call_roll(cluster, 20)))
    first.start()
    for _ in range(100):
        try:
            with socket.create_connection(cluster.coordinator) as line:
                line.sendall(noise)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    outcomes([replace(cluster, process_id=rank) for rank in (1, 2)], 20)
    first.join()
    assert len(here[0].hosts) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "it has another process 1: give each process its own number"),
        (b"{}\n", "is not process 0 of this run"),
        (b'{"hosts": 3}\n', "is not process 0 of this run"),
    ],
)
def test_what_answers_is_no_process_that_waits(cluster, answer, message):
    results = []
    with socket.create_server(("", cluster.coordinator[1])) as server:
        late = threading.Thread(
            target=lambda: results.extend(outcomes([replace(cluster, process_id=1)], 5))
        )
        late.start()
        line = server.accept()[0]
        line.recv(1 << 16)
        line.sendall(answer)
        line.close()
        late.join()
    assert message in results[0]


def test_hosts_in_words():
    hosts = {0: "a", 1: "a", 2: "b", 3: "a", 4: "b"}
    assert describe_hosts(hosts) == "processes 0-1, 3 on a, processes 2, 4 on b"
    assert describe_hosts({7: "a"}) == "process 7 on a"
