"""A signal that reaches one process stops all of them after the same step."""

import json
import signal

from process_group import losses, train, write_run

from dongwu_jax import exit_codes

LONG = {"duration": 100_000, "micro_batch_size": 1}


def test_a_signal_to_one_process_saves_all(tmp_path, request):
    write_run(tmp_path, mesh={"fsdp": 2}, training=LONG, checkpoint={"interval": 1000})
    group = train(tmp_path, 2, devices=2)
    request.addfinalizer(group.kill)
    group.wait_until(lambda: len(losses(tmp_path)) > 5)
    group.processes[1].send_signal(signal.SIGUSR1)
    for rank in range(2):
        assert group.wait(rank, timeout=60) == exit_codes.SAVED, group.output(rank)[-2000:]
        assert "Traceback" not in group.output(rank)
    (saved,) = (tmp_path / "run" / "checkpoints").glob("[0-9]*")
    assert int(saved.name) == max(losses(tmp_path))
    events = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    (stop,) = (event for event in events if event["event"] == "stop")
    assert (stop["reason"], stop["step"]) == ("SIGUSR1", int(saved.name))
