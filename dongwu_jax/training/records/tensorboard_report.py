"""TensorBoard event files, written before the next step goes on.

tensorboardX's own writer hands events to a thread. That ends where the disk is full, and when the
queue to it is full, too, a run would wait for ever.
"""

import socket
import struct
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from dongwu_jax.training.records.appended_file import AppendedFile, append_whole


class TensorBoardReport:
    """A file of events in `directory`: one event a report, with a scalar for each metric."""

    def __init__(self, directory: Path, start_step: int):
        """Begin a file; what older ones say of steps after `start_step` is no longer shown.

        Raises:
            OSError: it cannot be written.
        """
        now = time.time()
        path = directory / f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{time.time_ns()}"
        begins = SessionLog(status=SessionLog.START)
        head = (
            Event(wall_time=now, file_version="brain.Event:2"),
            Event(wall_time=now, step=start_step + 1, session_log=begins),
        )
        append_whole(path, b"".join(map(_framed, head)))
        self._file = AppendedFile(path)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append the event of a step; metrics are floats by name, each a scalar there."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._file.append(_framed(event))

    def close(self) -> None:
        """Write what waits for room on the disk, or say that it is lost."""
        self._file.close()


def _framed(event: Event) -> bytes:
    """An event as TensorFlow's record: its length and its bytes, each before its checksum."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(content))
