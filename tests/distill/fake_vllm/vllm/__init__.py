"""As much of vLLM as the toolkit uses, without a model: texts come from prompt and seed alone.

FAKE_VLLM_STEP_SECONDS slows it down; FAKE_VLLM_LOG names a file to which each engine adds a line
of JSON: its GPUs, and a process that it starts as vLLM starts its own. FAKE_VLLM_ANSWERS names
one to which it adds a character for each answer; where that has FAKE_VLLM_ENOUGH of them, engines
take no further step and wait to be killed.
"""

import hashlib
import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from vllm.sampling_params import RequestOutputKind

_WORDS = ["bond", "yield", "rises", "falls", "债券", "收益率", "上升", "下降", "market", "bank"]


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    seed: int
    output_kind: RequestOutputKind


class LLM:
    def __init__(
        self,
        model: str,
        tensor_parallel_size: int = 1,
        max_num_seqs: int = 8,
        max_model_len: int = 10_000,
    ) -> None:
        if max_num_seqs < 1:
            raise ValueError("max_num_seqs must be positive")
        self.llm_engine = _Engine(model, max_num_seqs, max_model_len)
        if log := os.environ.get("FAKE_VLLM_LOG"):
            child = subprocess.Popen(["sleep", "600"])
            self.llm_engine.engine_core.shutdown = child.kill
            devices = os.environ.get("CUDA_VISIBLE_DEVICES")
            with open(log, "a") as file:
                file.write(json.dumps({"devices": devices, "child": child.pid}) + "\n")


@dataclass
class _Running:
    prompt: str
    params: SamplingParams
    words: list[str]
    token_ids: list[int] = field(default_factory=list)


class _Engine:
    def __init__(self, model: str, max_num_seqs: int, max_model_len: int) -> None:
        scheduler = SimpleNamespace(max_num_seqs=max_num_seqs)
        self.vllm_config = SimpleNamespace(scheduler_config=scheduler)
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self._slots = max_num_seqs
        self._longest = max_model_len
        self._requests: dict[str, _Running] = {}
        config = Path(model) / "tokenizer_config.json"
        template = json.loads(config.read_text()).get("chat_template")
        self._tokenizer = _Tokenizer(template)
        self._step_seconds = float(os.environ.get("FAKE_VLLM_STEP_SECONDS", "0"))

    def get_tokenizer(self) -> "_Tokenizer":
        return self._tokenizer

    def add_request(self, request_id: str, prompt: object, params: SamplingParams) -> str:
        if isinstance(prompt, dict):
            prompt = bytes(prompt["prompt_token_ids"]).decode()
        assert isinstance(prompt, str)
        if "UNSPEAKABLE" in prompt or len(prompt) > self._longest:
            raise ValueError("the prompt is too long")
        assert request_id not in self._requests
        words = _text(prompt, params)
        self._requests[request_id] = _Running(prompt, params, words)
        return request_id

    def step(self) -> list[SimpleNamespace]:
        """A token more for each of the requests that have a slot."""
        time.sleep(self._step_seconds)
        _wait_when_enough()
        outputs = []
        for request_id in list(self._requests)[: self._slots]:
            running = self._requests[request_id]
            if "FATAL" in running.prompt:
                raise RuntimeError("out of memory")
            running.token_ids.append(0)
            ended = len(running.token_ids) >= max(1, len(running.words))
            if not ended and "UNFINISHED" not in running.prompt:
                continue
            reason = "length" if len(running.words) == running.params.max_tokens else "stop"
            if "UNFINISHED" in running.prompt:
                reason = "abort"
            made = SimpleNamespace(
                text="".join(" " + word for word in running.words),
                token_ids=running.token_ids,
                finish_reason=reason,
            )
            outputs.append(SimpleNamespace(request_id=request_id, finished=True, outputs=[made]))
            del self._requests[request_id]
        if answers := os.environ.get("FAKE_VLLM_ANSWERS"):
            with open(answers, "a") as file:
                file.write("." * len(outputs))
        return outputs


class _Tokenizer:
    def __init__(self, template: str | None) -> None:
        self.chat_template = template

    def apply_chat_template(self, messages: list[dict[str, str]], **options: bool) -> str:
        assert options.pop("add_generation_prompt")
        assert not options.pop("tokenize")
        return f"<user>{messages[0]['content']}<assistant>"

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return list(text.encode())


def _wait_when_enough() -> None:
    enough, answers = os.environ.get("FAKE_VLLM_ENOUGH"), os.environ.get("FAKE_VLLM_ANSWERS")
    while enough and answers and Path(answers).stat().st_size >= int(enough):
        time.sleep(1)


def _text(prompt: str, params: SamplingParams) -> list[str]:
    if "NOTHING" in prompt:
        return []
    decides = f"{prompt} {params.seed} {params.temperature} {params.top_p}"
    digest = hashlib.blake2b(decides.encode(), digest_size=32).digest()
    length = min(params.max_tokens, 1 + digest[0] % 24)
    return [_WORDS[byte % len(_WORDS)] for byte in digest[1 : 1 + length]]
