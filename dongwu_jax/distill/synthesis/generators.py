"""What the job needs of a generator, and which there are."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from dongwu_jax.distill.synthesis.prompts import Rejection, Request
from dongwu_jax.distill.synthesis.recipe import Sampling
from dongwu_jax.distill.synthesis.records import Completion

Answer = tuple[Request, Completion] | Rejection


class Generator(Protocol):
    """Turns requests into answers, keeping many of them in flight."""

    def answers(self, requests: Iterator[Request]) -> Iterator[Answer]:
        """One answer for each request, in the order in which they are ready.

        A request is taken only when there is room for it: this is what holds back the reader of
        the input. One that fails is answered with a `Rejection`.

        Raises:
            UserError: the generator itself failed.
        """
        ...

    def close(self) -> None:
        """Stop, dropping what is in flight."""
        ...


@dataclass(frozen=True)
class EngineMeans:
    """vLLM in this process.

    Attributes:
        model: folder of the model, in Hugging Face's format.
        tensor_parallel: GPUs that share the weights.
        options: further arguments of `vllm.LLM`.
    """

    model: str
    tensor_parallel: int = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerMeans:
    """A running server that speaks OpenAI's protocol.

    Attributes:
        url: its address, with or without `/v1`.
        model: the name under which it serves the model.
        concurrency: requests in flight.
        timeout_seconds: of one request.
    """

    url: str
    model: str
    concurrency: int
    timeout_seconds: float


Means = EngineMeans | ServerMeans


def open_generator(means: Means, sampling: Sampling) -> Generator:
    """Load the model, or reach the server.

    Raises:
        UserError: vLLM is not installed, refuses the model or an option; or nobody answers.
    """
    if isinstance(means, ServerMeans):
        from dongwu_jax.distill.synthesis.server import ServerGenerator

        return ServerGenerator(means, sampling)
    from dongwu_jax.distill.synthesis.vllm_engine import (
        VllmEngine,  # vLLM takes many seconds to import
    )

    return VllmEngine(means, sampling)
