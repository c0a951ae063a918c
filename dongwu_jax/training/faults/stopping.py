"""A run that is told to stop, by a signal or after a time, saves first.

Python's own handlers wait until the main thread has nothing else to do, which can be minutes while
it waits for devices. So the system writes the numbers of signals into a socket that a thread reads.
"""

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from dongwu_jax import exit_codes
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.stop_agreement import StopAgreement

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Launchers send a signal to a process and to its group: the two that arrive are one.
_SECONDS_OF_ONE_SIGNAL = 1.0
_DURATION = re.compile(r"^(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$")

EndProcess = Callable[[str, int], None]
"""Ends the process, and with it the run, with a reason and an exit code."""


def end_this_process(reason: str, exit_code: int) -> None:
    """How a process that is alone in its run ends, whatever its main thread does."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(exit_code)


class StopSignals:
    """While entered, SIGTERM and SIGUSR1 ask the run to stop; a second one ends it at once.

    Before the first step there is nothing to save: one signal ends the run, and not with the code
    of a run that has got anywhere, or one that never does would be started again for ever.
    """

    def __init__(self, agreement: StopAgreement, end: EndProcess):
        """Nothing is caught before it is entered, by the main thread."""
        self._agreement, self._end = agreement, end
        self._first: float | None = None

    def __enter__(self) -> None:
        self._read, self._written = socket.socketpair()
        self._written.setblocking(False)
        self._old_handlers = {number: signal.signal(number, _nothing) for number in _SIGNALS}
        self._old_file = signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A run that has been saved is about to end; launchers may well tell it to once more.
        saved = error is None and self._agreement.reason is not None
        signal.set_wakeup_fd(self._old_file)
        for number, handler in self._old_handlers.items():
            signal.signal(number, signal.SIG_IGN if saved else handler)
        self._written.close()
        self._thread.join()
        self._read.close()

    def _listen(self) -> None:
        while received := self._read.recv(1):
            if received[0] in _SIGNALS:
                self._take(signal.Signals(received[0]))

    def _take(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if not self._agreement.has_begun:
            self._end(f"{number.name} before the first step: nothing to save", exit_codes.FAILED)
        elif self._first is None:
            self._first = now
            logger.warning(
                "%s: stopping after the step in progress; once more: at once", number.name
            )
            self._agreement.request(number.name)
        elif now - self._first > _SECONDS_OF_ONE_SIGNAL:
            self._end(f"a second signal, {number.name}: not saved", exit_codes.BY_SIGNAL + number)


def _nothing(*_: object) -> None:
    """A handler: without one, the system would end the process."""


def stop_after(agreement: StopAgreement, seconds: float) -> None:
    """Ask the run to stop when this time has passed, but not before its first step.

    Otherwise a run that takes longer than that to start would be started again for ever.
    """

    def wait() -> None:
        time.sleep(seconds)
        agreement.wait_for_first_step()
        logger.info("the time of --exit-after is up: stopping after the step in progress")
        agreement.request("--exit-after")

    threading.Thread(target=wait, name="exit after", daemon=True).start()


def time_limit(text: str) -> float:
    """Seconds of a text such as `3h50m`, `2d`, `90s`.

    Raises:
        UserError: it is none, or no time at all.
    """
    match = _DURATION.match(text)
    parts = [int(part or 0) for part in match.groups()] if match else []
    seconds = sum(part * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=False))
    if not 0 < seconds < 1e8:
        raise UserError(f"--exit-after {text}: write days, hours, minutes and seconds, as in 3h50m")
    return float(seconds)
