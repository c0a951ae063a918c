"""After which step all processes of a run stop, when one of them is told to.

The steps are collective, so all must do the same ones. Nothing is exchanged while nobody wants to
stop. Then process 0 asks all how far they are; whoever has answered begins no further step until
the last of these numbers is known, which is where all stop.
"""

import threading
from typing import Any

from dongwu_jax.parallel.switchboard import Switchboard

_WANTED, _HOLD, _AFTER = "stop_wanted", "stop_hold", "stop_after"
_NOT_BEGUN = -1


class StopAgreement:
    """One process's part in it.

    Attributes:
        reason: why the run is to stop, once that is agreed.
    """

    def __init__(self, switchboard: Switchboard):
        self.reason: str | None = None
        self._switchboard = switchboard
        self._changed = threading.Condition()
        self._begun = _NOT_BEGUN
        self._deciding = self._holding = False
        self._last: int | None = None
        switchboard.on_notice(_WANTED, self._decide)
        switchboard.on_question(_HOLD, self._hold)
        switchboard.on_notice(_AFTER, self._agree)

    @property
    def has_begun(self) -> bool:
        """Whether this process has come to its first step."""
        return self._begun != _NOT_BEGUN

    def request(self, reason: str) -> None:
        """Ask all processes to stop, as soon as they can all do so after the same step."""
        self._switchboard.tell_first(_WANTED, reason)

    def may_begin(self, step: int) -> bool:
        """Whether `step` is still to be done; waits while the processes agree on that."""
        with self._changed:
            self._changed.wait_for(lambda: self._last is not None or not self._holding)
            if self._last is not None and step > self._last:
                return False
            self._begun = step
            self._changed.notify_all()
            return True

    def wait_for_first_step(self) -> None:
        """Until this process has begun a step."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_begun)

    def _decide(self, _: int, reason: Any) -> None:
        """On process 0: once, in a thread of its own, because listeners must not wait."""
        with self._changed:
            if self._deciding:
                return
            self._deciding = True
        threading.Thread(target=self._ask, args=(str(reason),), daemon=True).start()

    def _ask(self, reason: str) -> None:
        # Without a limit: a process that is gone ends all others, one that hangs the watchdogs.
        last = max(self._switchboard.ask_all(_HOLD).values())
        self._switchboard.tell_all(_AFTER, {"last": last, "reason": reason})

    def _hold(self) -> int:
        with self._changed:
            self._holding = True
            return self._begun

    def _agree(self, _: int, content: Any) -> None:
        with self._changed:
            self._last, self.reason = int(content["last"]), str(content["reason"])
            self._changed.notify_all()
