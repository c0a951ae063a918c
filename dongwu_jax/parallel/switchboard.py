"""What the processes of a run tell and ask each other beside JAX, over the lines of the roll call.

Rare and small. A thread answers, so that a process whose main thread waits for its devices does.
"""

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from dongwu_jax.parallel.roll_call import Connection

Listener = Callable[[int, Any], None]
"""Takes a notice: the number of the process that sent it, and its JSON-able content."""


class Switchboard:
    """Notices to process 0, notices from it to all, and its questions to all.

    Listeners and answers are called by the thread that reads the lines: they must not wait.
    A process alone talks to itself.
    """

    def __init__(self, process_id: int = 0, connections: Mapping[int, Connection] | None = None):
        self._process_id, self._connections = process_id, connections or {}
        self._listeners: dict[str, Listener] = {}
        self._answers: dict[str, Callable[[], Any]] = {}
        self._answered = threading.Condition()
        self._numbers = itertools.count(1)
        self._received: dict[int, dict[int, Any]] = {}  # by question, by process

    def on_notice(self, kind: str, listener: Listener) -> None:
        """Who is told of notices of a kind."""
        self._listeners[kind] = listener

    def on_question(self, kind: str, answer: Callable[[], Any]) -> None:
        """Who answers questions of a kind; the answer is JSON-able."""
        self._answers[kind] = answer

    def tell_first(self, kind: str, content: Any) -> None:
        """Send a notice to process 0."""
        if self._process_id == 0:
            self._hear(0, kind, content)
        else:
            self._connections[0].send({"notice": kind, "content": content})

    def tell_all(self, kind: str, content: Any) -> None:
        """Send a notice to every process, this one too; for process 0."""
        for connection in self._connections.values():
            connection.send({"notice": kind, "content": content})
        self._hear(0, kind, content)

    def ask_all(self, kind: str, timeout_seconds: float | None = None) -> dict[int, Any]:
        """The answers of all processes, by number; for process 0, not from a listener.

        Args:
            timeout_seconds: after which those that have not answered are left out.
        """
        number = next(self._numbers)
        answers = self._received[number] = {0: self._answer(kind)}
        for connection in self._connections.values():
            connection.send({"question": kind, "number": number})
        with self._answered:
            self._answered.wait_for(lambda: len(answers) > len(self._connections), timeout_seconds)
            return self._received.pop(number)

    def take_in(self, rank: int, message: Mapping[str, Any]) -> None:
        """A message that came from a process; of kinds that nobody knows, nothing happens."""
        if "notice" in message:
            self._hear(rank, str(message["notice"]), message.get("content"))
        elif "question" in message:
            answer = self._answer(str(message["question"]))
            reply = {"answer": answer, "number": message.get("number")}
            self._connections[rank].send(reply)
        elif "answer" in message:
            with self._answered:
                question = self._received.get(message.get("number", 0))
                if question is not None:  # else it has been given up
                    question[rank] = message["answer"]
                    self._answered.notify_all()

    def _hear(self, rank: int, kind: str, content: Any) -> None:
        if kind in self._listeners:
            self._listeners[kind](rank, content)

    def _answer(self, kind: str) -> Any:
        return self._answers[kind]() if kind in self._answers else None
