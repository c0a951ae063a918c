"""What ends all processes of a run when one of them ends: nothing waits for the dead.

A collective whose partner is gone waits for ever, or dies with a trace that names nobody. A thread
watches the connections of the roll call instead: the system closes them when a process ends, and
reports a host that no longer answers within half a minute. A process 0 that stands still keeps
its connections, so the others also ask it.
"""

import os
import selectors
import sys
import threading
import time
import traceback
from typing import Any, NoReturn, Protocol

from dongwu_jax import exit_codes
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.peers import Peers
from dongwu_jax.parallel.roll_call import Attendance, Connection
from dongwu_jax.parallel.switchboard import Switchboard

# How long a process that failed waits to hear that another failed first.
_SECONDS_FOR_THE_CAUSE = 5.0
# How long the others have to end by themselves when one says why it stops: often all fail alike.
_SECONDS_TO_END = 5.0
# After so many questions without an answer, 28 s, process 0 stands still. JAX takes longer, and
# aborts without a word that names it.
_UNANSWERED_QUESTIONS = 4
_SECONDS_FOR_AN_ANSWER = 5.0
_SECONDS_BETWEEN_QUESTIONS = 2.0
_QUESTION = "dongwu_jax/process_0_is_here"


class KeyValueStore(Protocol):
    """What is used of JAX's distributed client."""

    def key_value_set(self, key: str, value: str) -> None:
        """Tell all processes."""
        ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        """What a process told, once it has."""
        ...


class Lifelines:
    """Ties this process to the others from the roll call on.

    Attributes:
        peers: the processes, for what they have to tell each other.
    """

    def __init__(self, process_id: int, attendance: Attendance):
        self._process_id, self._connections = process_id, attendance.connections
        self.peers = Peers(
            process_id, attendance.hosts, Switchboard(process_id, attendance.connections)
        )
        self._finished: set[int] = set()
        self._told = threading.Event()  # that another process ended
        self._ending = threading.Lock()  # of whoever ends this process
        self._done = threading.Event()
        self._asking: threading.Thread | None = None
        threading.Thread(target=self._watch, name="lifelines", daemon=True).start()

    def ask_process_0(self, store: KeyValueStore) -> None:
        """From now on, also notice when process 0 stands still, as a stopped process does.

        Its JAX service is asked, whose threads do not need Python's lock: a process 0 that holds
        it for minutes, as some of NumPy does, answers all the same.
        """
        if self._process_id == 0:
            store.key_value_set(_QUESTION, "yes")
            return
        self._asking = threading.Thread(target=self._ask, args=(store,), daemon=True)
        self._asking.start()

    def finish(self) -> None:
        """Say that this process has done its work, so that its end alarms nobody."""
        self._done.set()
        if self._asking is not None:  # a thread inside JAX would not survive Python's end
            self._asking.join()
        self._broadcast({"finished": True})

    def fail(self, error: BaseException) -> NoReturn:
        """End this process, and with it all others, which are told why.

        Where another process has failed before, its end is named instead of what followed here.
        """
        own = isinstance(error, UserError | KeyboardInterrupt)
        if not own and self._told.wait(_SECONDS_FOR_THE_CAUSE):
            threading.Event().wait()  # the watching thread ends the process
        if isinstance(error, UserError):
            reason, exit_code = str(error), error.exit_code
        elif isinstance(error, KeyboardInterrupt):
            reason, exit_code = "interrupted", exit_codes.INTERRUPTED
        else:
            traceback.print_exception(error)
            reason, exit_code = f"{type(error).__name__}: {error}", exit_codes.FAILED
        self.stop(reason, exit_code)

    def stop(self, reason: str, exit_code: int) -> NoReturn:
        """End this process with an exit code, and with it all others, which are told why."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread ends the process
        own_name = self.peers.name(self._process_id)
        self._broadcast({"stopped": f"{own_name} stopped: {reason}"})
        self._end(f"{own_name}: {reason}", exit_code)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection.socket, selectors.EVENT_READ, (rank, connection))
            while selector.get_map():
                for key, _ in selector.select():
                    rank, connection = key.data
                    try:
                        self._take_in(rank, connection)
                    except ConnectionError as error:
                        selector.unregister(connection.socket)
                        if rank not in self._finished:
                            self._stop_with(f"{self.peers.name(rank)} is gone: {error}", 0)

    def _ask(self, store: KeyValueStore) -> None:
        answered, unanswered = False, 0
        while not self._done.wait(_SECONDS_BETWEEN_QUESTIONS):
            asked = time.monotonic()
            try:
                store.blocking_key_value_get(_QUESTION, int(_SECONDS_FOR_AN_ANSWER * 1000))
                answered, unanswered = True, 0
            except Exception as error:  # of a kind that only JAX knows
                if "DEADLINE_EXCEEDED" in str(error):
                    unanswered += answered
            if unanswered == 0:
                last = asked
            elif unanswered == _UNANSWERED_QUESTIONS:
                seconds = time.monotonic() - last
                self._stop_with(f"{self.peers.name(0)} has not answered for {seconds:.0f} s", 0)

    def _take_in(self, rank: int, connection: Connection) -> None:
        for message in connection.receive():
            if "finished" in message:
                self._finished.add(rank)
            elif "stopped" in message:
                self._stop_with(str(message["stopped"]), _SECONDS_TO_END)
            elif "lost" in message:
                self._stop_with(str(message["lost"]), 0)
            else:
                self.peers.switchboard.take_in(rank, message)

    def _stop_with(self, reason: str, seconds_to_end: float) -> None:
        """End this process because of another, unless it ends by itself first."""
        self._told.set()
        if self._process_id == 0:
            self._broadcast({"stopped" if seconds_to_end else "lost": reason})
        time.sleep(seconds_to_end)
        if self._ending.acquire(blocking=False):
            self._end(
                f"{reason}. {self.peers.name(self._process_id)} stops too; the same command goes "
                "on from the newest checkpoint",
                exit_codes.PEER_LOST,
            )

    def _broadcast(self, message: dict[str, Any]) -> None:
        for connection in self._connections.values():
            connection.send(message)

    def _end(self, reason: str, exit_code: int) -> NoReturn:
        """Leave at once: the normal way out waits for processes that may be gone."""
        print(f"error: {reason}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if self._process_id == 0:  # JAX ends the others with a trace as soon as process 0 ends
            deadline = time.monotonic() + _SECONDS_TO_END + 1
            lines = self._connections.values()
            while time.monotonic() < deadline and not all(line.closed() for line in lines):
                time.sleep(0.1)
        os._exit(exit_code)
