"""One engine at work: parts in, files out, through a window that slides over the parts.

A sample is on disk as soon as it is made, in a file of its part's beginning; a kill costs the
requests in flight only.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from dongwu_jax.distill.synthesis.cutting import TextCutter
from dongwu_jax.distill.synthesis.generators import Generator, Means, open_generator
from dongwu_jax.distill.synthesis.parts import Part, PartFolder, documents_of, source_names
from dongwu_jax.distill.synthesis.progress import Counts
from dongwu_jax.distill.synthesis.prompts import PromptMaker, Rejection, Request
from dongwu_jax.distill.synthesis.recipe import Recipe
from dongwu_jax.distill.synthesis.records import Completion, rejected_record, sample_record
from dongwu_jax.distill.synthesis.stopping import Stopped, stop_on_signals
from dongwu_jax.errors import UserError

_HOPELESS = 50  # failures in a row: not bad prompts, but a generator that does not work


@dataclass(frozen=True)
class Work:
    """What every engine of a job needs to know.

    Attributes:
        folder: where parts are written; None: nowhere.
        tokenizer: of the generator.
    """

    recipe: Recipe
    means: Means
    tokenizer: Path
    inputs: tuple[Path, ...]
    folder: Path | None


@dataclass
class _OpenPart:
    """A part on its way: its records by their place in it."""

    begun: BinaryIO | None = None  # the file of its samples so far
    waiting: int = 0  # requests without an answer
    read: bool = False  # all its documents were
    samples: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    rejected: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)


class PartRunner:
    """Runs parts through a generator and writes each as soon as it is complete.

    Args:
        report: is told what was made, sample by sample.
    """

    def __init__(self, work: Work, generator: Generator, report: Callable[[Counts], None]) -> None:
        self._work = work
        self._generator = generator
        self._report = report
        cutter = TextCutter(work.tokenizer)
        self._prompts = PromptMaker(work.recipe, cutter, source_names(work.inputs))
        self._folder = None if work.folder is None else PartFolder(work.folder)
        self._open: dict[int, _OpenPart] = {}
        self._finished: dict[int, _OpenPart] = {}  # to be written
        self._failures = 0  # of the generator, in a row
        self._place: dict[str, tuple[int, tuple[int, int]]] = {}  # of a request by its id

    def run(self, parts: Iterator[Part]) -> None:
        """Run parts; the requests of the next follow while answers of the last are missing.

        Raises:
            UserError: the generator fails, the input cannot be read, the folder not be written.
        """
        for answer in self._generator.answers(self._requests(parts)):
            rejection = answer if isinstance(answer, Rejection) else _rejected_if_empty(*answer)
            request = rejection.request if rejection else answer[0]  # type: ignore[index]
            assert request is not None
            part, place = self._place.pop(request.id)
            if rejection:
                self._set_aside(part, place, rejection, 1)
            else:
                self._keep(part, place, *answer)  # type: ignore[misc]
            self._count_failures(rejection)
            self._open[part].waiting -= 1
            self._finish_if_complete(part)
        self._write_finished()

    def _requests(self, parts: Iterator[Part]) -> Iterator[Request]:
        for part in parts:
            state = self._open[part.number] = _OpenPart()
            found: dict[str, dict[str, Any]] = {}
            if self._folder is not None:
                records, state.begun = self._folder.begun(part.number)
                found = {record["id"]: record for record in records}
            for document, line in enumerate(documents_of(part, self._work.inputs)):
                for index, made in enumerate(self._prompts.requests(*line)):
                    place = (document, index)
                    if isinstance(made, Rejection):
                        whole = index == 0 and made.request is None
                        count = self._work.recipe.rounds if whole else 1
                        self._set_aside(part.number, place, made, count)
                    elif made.id in found:
                        state.samples[place] = found[made.id]
                        self._report(Counts(found=1))
                    else:
                        state.waiting += 1
                        self._place[made.id] = (part.number, place)
                        yield made
            state.read = True
            self._finish_if_complete(part.number)

    def _keep(
        self, part: int, place: tuple[int, int], request: Request, completion: Completion
    ) -> None:
        model = self._work.means.model
        record = sample_record(request, completion, self._work.recipe, model)
        state = self._open[part]
        state.samples[place] = record
        if state.begun is not None:
            state.begun.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            state.begun.flush()
        self._report(Counts(1, 1, 0, request.prefix_tokens, completion.tokens))

    def _set_aside(
        self, part: int, place: tuple[int, int], rejection: Rejection, requests: int
    ) -> None:
        self._open[part].rejected[place] = rejected_record(rejection)
        self._report(Counts(requests, rejected=Counter([rejection.kind])))

    def _count_failures(self, rejection: Rejection | None) -> None:
        if rejection is None or rejection.kind != "generator":
            self._failures = 0
            return
        self._failures += 1
        if self._failures == _HOPELESS:
            raise UserError(
                f"the generator failed on {_HOPELESS} prompts in a row, the last time: "
                f"{rejection.reason}. The same command goes on with what is missing"
            )

    def _finish_if_complete(self, part: int) -> None:
        state = self._open[part]
        if state.waiting or not state.read:
            return
        self._finished[part] = self._open.pop(part)
        if not self._failures:  # else it may be the generator that fails: wait for an answer
            self._write_finished()

    def _write_finished(self) -> None:
        while self._finished:
            part, state = self._finished.popitem()
            if self._folder is not None and state.begun is not None:
                state.begun.close()
                samples = [state.samples[place] for place in sorted(state.samples)]
                rejected = [state.rejected[place] for place in sorted(state.rejected)]
                self._folder.write(part, samples, rejected)


def _rejected_if_empty(request: Request, completion: Completion) -> Rejection | None:
    if completion.text.strip():
        return None
    reason = f"the model wrote nothing ({completion.finish_reason})"
    return Rejection(request.source, "empty", reason, request)


def run_worker(work: Work, devices: str | None, pipe: Connection) -> None:
    """The main function of an engine's process.

    It sends ("ready",), ("counts", Counts), ("next",), which is answered with a part or None,
    and at the end ("done",) or ("failed", message).

    Args:
        devices: value of CUDA_VISIBLE_DEVICES; None: as it is.
        pipe: to the process that hands out parts.
    """
    os.dup2(2, 1)  # vLLM reports on stdout, which is for results
    os.setpgid(0, 0)  # with all that vLLM starts, to be ended as one
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report to its makers

    def parts() -> Iterator[Part]:
        pipe.send(("next",))
        while (part := pipe.recv()) is not None:
            yield part
            pipe.send(("next",))

    generator = None
    with contextlib.suppress(Stopped, BrokenPipeError, EOFError), stop_on_signals():
        try:
            generator = open_generator(work.means, work.recipe.sampling)
            runner = PartRunner(work, generator, lambda counts: pipe.send(("counts", counts)))
            pipe.send(("ready",))
            runner.run(parts())
            pipe.send(("done",))
        except UserError as error:
            pipe.send(("failed", str(error)))
        finally:
            if generator is not None:
                generator.close()


def _die_with_parent() -> None:
    """vLLM's processes outlive a killed parent, and keep its GPU; ours do not."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
