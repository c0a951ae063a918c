"""Client of a running server that speaks OpenAI's protocol, such as `vllm serve`."""

import http.client
import json
import os
import queue
import random
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from dongwu_jax.distill.synthesis.generators import Answer, ServerMeans
from dongwu_jax.distill.synthesis.prompts import Rejection, Request
from dongwu_jax.distill.synthesis.recipe import Sampling
from dongwu_jax.distill.synthesis.records import Completion
from dongwu_jax.errors import UserError

_TRIES = 7
_FIRST_PAUSE_SECONDS = 1.0  # doubled after each try: a minute in all, time to restart a server
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
_FAILURES = (OSError, http.client.HTTPException, ValueError, RecursionError)


class _RefusedError(Exception):
    """The server will never answer this request."""


class ServerGenerator:
    """Threads that each hold one connection; as many requests are in flight as there are threads.

    Raises:
        UserError: nobody answers, or the server does not serve the model.
    """

    def __init__(self, means: ServerMeans, sampling: Sampling) -> None:
        self._means = means
        self._sampling = sampling
        self._waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Answer | BaseException] = queue.SimpleQueue()
        self._check_model()
        for _ in range(means.concurrency):
            # Daemons: a request that hangs must not hold up the end of the program.
            threading.Thread(target=self._serve, daemon=True).start()

    def answers(self, requests: Iterator[Request]) -> Iterator[Answer]:
        """See `Generator.answers`."""
        window = 2 * self._means.concurrency  # a thread that is free finds work at once
        in_flight = 0
        more = True
        while more or in_flight:
            while more and in_flight < window:
                request = next(requests, None)
                if request is None:
                    more = False
                else:
                    self._waiting.put(request)
                    in_flight += 1
            if in_flight:
                answer = self._done.get()
                if isinstance(answer, BaseException):
                    raise answer
                in_flight -= 1
                yield answer

    def close(self) -> None:
        """Nothing: the threads end with the program."""

    def _check_model(self) -> None:
        place = f"--server {self._means.url}"
        try:
            listed = _Connection(self._means).call("GET", "/models")
            names = [str(entry["id"]) for entry in listed["data"]]
        except (*_FAILURES, _RefusedError, KeyError, TypeError) as error:
            raise UserError(f"{place}: does not answer as an OpenAI server does: {error}") from None
        if self._means.model not in names:
            raise UserError(
                f"--model {self._means.model}: {place} serves {', '.join(names) or 'no model'}; "
                "give that name, and its folder with --tokenizer"
            )

    def _serve(self) -> None:
        connection = _Connection(self._means)
        while True:
            request = self._waiting.get()
            try:
                self._done.put(self._answer(connection, request))
            except BaseException as error:  # a defect of ours must end the job, not one thread
                self._done.put(error)

    def _answer(self, connection: "_Connection", request: Request) -> Answer:
        pause = _FIRST_PAUSE_SECONDS
        for tried in range(1, _TRIES + 1):
            try:
                path, body = self._call_of(request)
                return request, _completion(connection.call("POST", path, body))
            except _RefusedError as error:
                return Rejection(request.source, "generator", str(error), request)
            except _FAILURES as error:
                connection.close()
                reason = f"failed {tried} times, the last: {error or type(error).__name__}"
            if tried < _TRIES:
                time.sleep(pause * random.uniform(0.5, 1.5))  # not all at the same moment
                pause *= 2
        return Rejection(request.source, "generator", reason, request)

    def _call_of(self, request: Request) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self._means.model,
            "max_tokens": self._sampling.max_new_tokens,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "repetition_penalty": self._sampling.repetition_penalty,
            "top_k": -1,  # vLLM would take it from the model's generation_config.json
            "seed": request.seed,
        }
        if request.message is None:
            return "/completions", body | {"prompt": request.prefix}
        messages = [{"role": "user", "content": request.message}]
        no_thoughts = {"enable_thinking": False}
        return "/chat/completions", body | {
            "messages": messages,
            "chat_template_kwargs": no_thoughts,
        }


def _completion(answer: Any) -> Completion:
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        made = Completion(text or "", answer["usage"]["completion_tokens"], choice["finish_reason"])
        made.text.encode()  # half of a surrogate pair could not be written
        sound = type(made.tokens) is int and made.tokens >= 0
        if not sound or not isinstance(made.finish_reason, str):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeEncodeError):
        raise ValueError(f"an answer without text: {json.dumps(answer)[:200]}") from None
    return made


class _Connection:
    """One connection that is kept open."""

    def __init__(self, means: ServerMeans) -> None:
        parts = urlsplit(means.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--server {means.url}: write it as http://host:8000")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._http = kind(parts.hostname, parts.port, timeout=means.timeout_seconds)
        self._root = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            self._headers["Authorization"] = f"Bearer {key}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer.

        Raises:
            _RefusedError: the server refuses the request for good.
            OSError, http.client.HTTPException, ValueError: trying again may help.
        """
        content = None if body is None else json.dumps(body).encode()
        self._http.request(method, self._root + path, content, self._headers)
        response = self._http.getresponse()
        answer = response.read()
        if response.status == 200:
            return json.loads(answer)
        reason = f"HTTP {response.status}: {answer.decode(errors='replace')[:300]}"
        if response.status in _PASSING:
            raise OSError(reason)
        raise _RefusedError(reason)

    def close(self) -> None:
        """Drop the connection; the next call opens another."""
        self._http.close()
