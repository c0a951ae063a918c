"""Hosts that keep the others waiting, by what each does between its waits for the devices.

All processes take the same time for a step, because they wait for each other in it. What differs is
how much of it a process spends on its own: waiting for data, Python, a busy or throttled processor.
(A slow GPU does not show here: its host waits for it as the others do.)
"""

import logging
import statistics
import threading
import time
from collections import defaultdict
from typing import Any

from dongwu_jax.parallel.peers import Peers
from dongwu_jax.training.records.run_log import RunLog

logger = logging.getLogger(__name__)

_PACE = "pace"
_SECONDS_BETWEEN_NOTICES = 10.0
_SECONDS_BETWEEN_RECORDS = 60.0


class Stragglers:
    """Tells process 0 how this process spends its steps; there, compares all."""

    def __init__(self, peers: Peers, run_log: RunLog, share: float):
        """Begin to listen.

        Args:
            share: of a step; a process whose own work takes so much longer than the median
                process's is named. 0: none is.
        """
        self._peers, self._run_log, self._share = peers, run_log, share
        self._own = [0.0, 0.0, 0.0]  # steps, own seconds, seconds
        self._sent = self._recorded = time.monotonic()
        self._lock = threading.Lock()
        self._heard: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        peers.switchboard.on_notice(_PACE, self._hear)

    def step_times(self, step: int, steps: int, own_seconds: float, seconds: float) -> None:
        """Take note of the last `steps` steps: what they took, and what of it on this process."""
        for place, value in enumerate((steps, own_seconds, seconds)):
            self._own[place] += value
        now = time.monotonic()
        if len(self._peers.hosts) > 1 and now - self._sent >= _SECONDS_BETWEEN_NOTICES:
            self._peers.switchboard.tell_first(
                _PACE, {"process": self._peers.process_id, "step": step, "times": self._own}
            )
            self._own, self._sent = [0.0, 0.0, 0.0], now

    def _hear(self, _: int, content: Any) -> None:
        """On process 0, from a thread of its own."""
        with self._lock:
            heard = self._heard[int(content["process"])]
            for place, value in enumerate(content["times"]):
                heard[place] += value
            now = time.monotonic()
            all_heard = len(self._heard) == len(self._peers.hosts)
            if all_heard and now - self._recorded >= _SECONDS_BETWEEN_RECORDS:
                self._recorded = now
                times = {
                    rank: (own / n, whole / n) for rank, (n, own, whole) in self._heard.items()
                }
                self._heard.clear()
                self._compare(int(content["step"]), times)

    def _compare(self, step: int, times: dict[int, tuple[float, float]]) -> None:
        """Record what the processes do on their own, seconds a step, and name the slow ones."""
        usual = statistics.median(own for own, _ in times.values())
        whole = statistics.median(whole for _, whole in times.values())
        seconds = {f"{self._peers.hosts[rank]}/{rank}": own for rank, (own, _) in times.items()}
        self._run_log.event("step_times", step=step, seconds=seconds)
        for rank, (own, _) in times.items():
            if self._share and own - usual > self._share * whole:
                logger.warning(
                    "%s keeps the others waiting: about step %d it spends %.3f s of a step of %.3f "
                    "s on its own, the median process %.3f s",
                    *(self._peers.name(rank), step, own, whole, usual),
                )
                self._run_log.event(
                    "straggler",
                    step=step,
                    process=rank,
                    host=self._peers.hosts[rank],
                    own_seconds=own,
                    median_own_seconds=usual,
                    step_seconds=whole,
                )
