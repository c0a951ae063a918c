"""What a run appends to while it trains: disks without room, damaged lines, starts that fail."""

import json
import logging
import re
import socket

import pytest
from json_lines import read_lines
from runs import run_config
from storage_limits import files_of_at_most
from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event

from dongwu_jax.errors import UserError
from dongwu_jax.training.records import appended_file
from dongwu_jax.training.records.appended_file import AppendedFile
from dongwu_jax.training.records.metrics_file import MetricsFile
from dongwu_jax.training.records.run_log import RunLog, lost_work
from dongwu_jax.training.records.tensorboard_report import TensorBoardReport
from dongwu_jax.training.trainer import Trainer


def test_what_finds_no_room_waits_and_comes_in_order(tmp_path, caplog):
    path = tmp_path / "new" / "file"
    file = AppendedFile(path)
    file.append(b"first\n")
    with files_of_at_most(9):
        for record in (b"second\n", b"third\n", b"fourth\n"):
            file.append(record)
            assert path.read_bytes() == b"first\n"  # not the three bytes that there is room for
    file.append(b"fifth\n")
    assert path.read_bytes() == b"first\nsecond\nthird\nfourth\nfifth\n"
    assert caplog.text.count("cannot be written: [Errno 27]") == 1
    assert "is written again; nothing is lost" in caplog.text
    file.close()


def test_what_waits_fits_in_memory(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(appended_file, "MOST_WAITING", 3)
    monkeypatch.setattr(appended_file, "_AT_ONCE", 2)
    file = AppendedFile(tmp_path / "file")
    with files_of_at_most(0):
        for number in range(5):
            file.append(b"%d\n" % number)
    file.append(b"5\n")
    assert (tmp_path / "file").read_bytes() == b"3\n4\n5\n"
    assert "is written again; records lost: 3" in caplog.text


def test_what_still_waits_at_the_end_is_tried_once_more(tmp_path, caplog):
    files = [AppendedFile(tmp_path / name) for name in ("one", "two")]
    with files_of_at_most(0):
        for file in files:
            file.append(b"record\n")
        files[0].close()
    files[1].close()
    assert "one: could not be written to the end; records lost: 1" in caplog.text
    assert (tmp_path / "one").read_bytes() == b""
    assert (tmp_path / "two").read_bytes() == b"record\n"


def test_events_wait_for_room(tmp_path):
    log = RunLog(tmp_path / "events.jsonl")
    with files_of_at_most(10):
        log.event("checkpoint_failed", newest=3)
    log.event("stop", step=4)
    assert [line["event"] for line in read_lines(tmp_path / "events.jsonl")] == [
        "checkpoint_failed",
        "stop",
    ]


def tensorboard_events(path):
    """The events of a file, whose frames must be those that tensorboardX writes of them."""
    content, contents = path.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        contents.append(content[12 : 12 + size])
        content = content[16 + size :]
    other = RecordWriter(str(path.with_name("other")))
    for each in contents:
        other.write(each)
    other.close()
    assert path.read_bytes() == path.with_name("other").read_bytes()
    return [Event.FromString(each) for each in contents]


def test_tensorboard_goes_on_over_a_full_disk(tmp_path):
    report = TensorBoardReport(tmp_path, start_step=0)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    report.write(1, {"loss": 3.0})
    with files_of_at_most(path.stat().st_size + 20):
        for step in range(2, 100):  # more than any queue between threads holds
            report.write(step, {"loss": 3.0 - step / 100, "mfu": 0.5})
    report.write(100, {"loss": 2.0})
    report.close()
    version, begins, *events = tensorboard_events(path)
    assert version.file_version == "brain.Event:2"
    assert (begins.step, begins.session_log.status) == (1, begins.session_log.START)
    assert [event.step for event in events] == list(range(1, 101))
    second = {value.tag: value.simple_value for value in events[1].summary.value}
    assert second == {"loss": pytest.approx(2.98), "mfu": 0.5}


def test_a_run_whose_logs_find_no_room_goes_on_and_loses_nothing(tmp_path, caplog):
    trainer = Trainer(run_config(tmp_path, logging={"tensorboard": True}))
    finished, full = trainer._progress.step_finished, files_of_at_most(1)

    def watched(step, metrics, waited):
        if step == 4:
            full.__enter__()
        finished(step, metrics, waited)
        if step == 8:
            full.__exit__(None, None, None)

    trainer._progress.step_finished = watched
    with caplog.at_level(logging.WARNING):
        trainer.run()
    for name in (r"metrics\.jsonl", r"tfevents\S+"):
        assert len(re.findall(name + r": cannot be written: \[Errno 27\]", caplog.text)) == 1
    run = tmp_path / "run"
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(1, 21))
    (path,) = (run / "tensorboard").glob("events.out.tfevents.*")
    assert [event.step for event in tensorboard_events(path)][2:] == list(range(1, 21))


def damaged(path):
    """Metrics of steps 1 to 4, in which lines 2 and 3 are damaged, cut short by a kill."""
    lines = [{"step": s, "loss": 1.0, "step_seconds": 2.0, "time": 5.0 + s} for s in range(1, 5)]
    content = [json.dumps(line).encode() for line in lines]
    content[1] = content[1].replace(b"loss", b"lo\xffs")
    content[2] = b'{"step": true, "loss": []}'
    path.write_bytes(b"\n".join(content) + b'\n{"step": 5, "lo')
    return lines


def test_damaged_metrics_do_not_stop_a_resume(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = damaged(path)
    before = path.read_bytes()
    MetricsFile(path, start_step=4, resumed=True).write(5, {"loss": float("nan")})
    first, last, new = read_lines(path)
    assert [first, last, new["step"]] == [lines[0], lines[3], 5]
    assert "no metrics: 2; they are left out" in caplog.text
    assert (tmp_path / "metrics.1.jsonl").read_bytes() == before
    MetricsFile(path, start_step=5, resumed=True).close()  # a loss that is none is no damage
    assert [line["step"] for line in read_lines(path)] == [1, 4, 5]
    assert not (tmp_path / "metrics.2.jsonl").exists()


def test_lost_work_of_damaged_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "loss": 1.0, "step_seconds": "x"},
        {"step": 2, "loss": 1.0, "step_seconds": "x"},
        {"step": 3, "loss": 1.0, "step_seconds": 4.0, "time": 9.0},
        {"step": "4", "loss": 1.0},
    ]
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + b"\xff\n7\n")
    lost = lost_work(path, 1)
    assert (lost["previous_step"], lost["lost_steps"], lost["lost_seconds"]) == (3, 2, 4.0)


def test_a_start_that_cannot_report_has_an_end(tmp_path):
    pytest.importorskip("prometheus_client")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        trainer = Trainer(run_config(tmp_path, logging={"prometheus_port": port}))
        with pytest.raises(UserError, match="cannot listen"):
            trainer.run()
    start, end = read_lines(tmp_path / "run" / "events.jsonl")
    assert (start["event"], end["event"], end["reason"]) == ("start", "end", "failed")
    assert "cannot listen" in end["message"]
