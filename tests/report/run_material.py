"""Run folders with times that can be worked out on paper."""

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Clock:
    """Writes a run's files as its trainer would, one second a step."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.now, self.steps = folder, 1_000_000.0, 100
        self.events: list[Record] = []
        self.lines: list[Record] = []

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"time": self.now, "event": kind, **fields})

    def start(self, step: int, loading: float, compiling: float, **fields: Any) -> None:
        """Load for some seconds, say so, compile; lines of later steps are dropped."""
        began = self.now
        self.now += loading
        last = self.lines[-1] if self.lines else {"step": 0, "time": None}
        resumed = {"resumed": step > 0, "previous_step": last["step"]}
        resumed["previous_time"] = last["time"]
        self.event("start", began=began, step=step, steps=self.steps, **resumed, **fields)
        self.lines = [line for line in self.lines if line["step"] <= step] if step else []
        self.now += compiling
        self.event("compiled", seconds=compiling)

    def train(self, first: int, last: int, **metrics: float) -> None:
        for step in range(first, last + 1):
            self.now += 1.0
            values = {"loss": 2.0 + 8.0 / step, "step_seconds": 1.0, **metrics}
            self.lines.append({"step": step, "time": self.now, **values})

    def pause(self, what: str, step: int, seconds: float) -> None:
        self.now += seconds
        self.event("pause", what=what, step=step, seconds=seconds)

    def evaluate(self, step: int, seconds: float, loss: float = 2.5) -> None:
        self.pause("evaluation", step, seconds)
        self.lines.append({"step": step, "time": self.now, "validation_loss": loss})

    def end(self, reason: str, step: int, **fields: Any) -> None:
        self.event("end", reason=reason, step=step, **fields)

    def write(self) -> Path:
        for name, records in (("events", self.events), ("metrics", self.lines)):
            text = "".join(json.dumps(record) + "\n" for record in records)
            (self.folder / f"{name}.jsonl").write_text(text)
        return self.folder


def killed_twice(folder: Path) -> Clock:
    """100 steps, a checkpoint every 20, killed after step 30 and after step 55."""
    clock = Clock(folder)
    clock.start(0, loading=10, compiling=20)
    clock.train(1, 20)
    clock.evaluate(20, seconds=4)
    clock.pause("checkpoint", 20, seconds=2)
    clock.train(21, 30)
    clock.now += 100
    clock.start(20, loading=8, compiling=5)
    clock.train(21, 40)
    clock.evaluate(40, seconds=4)
    clock.pause("checkpoint", 40, seconds=2)
    clock.train(41, 55)
    clock.now += 50
    clock.start(40, loading=7, compiling=5)
    for first in (41, 61, 81):
        clock.train(first, first + 19)
        clock.evaluate(first + 19, seconds=4)
        clock.pause("checkpoint", first + 19, seconds=2)
    clock.pause("closing", 100, seconds=1)
    clock.end("finished", 100)
    return clock
