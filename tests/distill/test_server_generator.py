"""Generating through a running server: what is asked of it, and what happens when it fails."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from json_lines import write_texts
from synthesis_runs import Job, document, records, save_model

from dongwu_jax.distill.synthesis import server
from dongwu_jax.distill.synthesis.generators import Answer, ServerMeans
from dongwu_jax.distill.synthesis.prompts import Rejection, Request
from dongwu_jax.distill.synthesis.recipe import Sampling
from dongwu_jax.distill.synthesis.server import ServerGenerator
from dongwu_jax.errors import UserError

_SAMPLING = Sampling(16, 0.7, 0.9, 1.05)


class _Server(ThreadingHTTPServer):
    """Answers as vLLM's server does, but for prompts that name a fault.

    Attributes:
        asked: path, headers and body of each request.
        most: greatest number of requests at one time.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.tries: Counter[str] = Counter()
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "teacher"}, {"id": "adapter"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), body))
            self.server.tries[prompt] += 1
            tries = self.server.tries[prompt]
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        time.sleep(0.01)
        status, answer = self._answer(prompt, tries, body)
        with self.server.lock:
            self.server.now -= 1
        self._send(status, answer)

    def _answer(self, prompt: str, tries: int, body: dict[str, Any]) -> tuple[int, Any]:
        if "TOO LONG" in prompt:
            return 400, {"error": {"message": "maximum context length is 8 tokens"}}
        if "OVERLOADED" in prompt and tries < 3:
            return 503, {}
        if "HANGS" in prompt and tries < 2:
            time.sleep(1.5)
        if "HANGS UP" in prompt and tries < 4:
            self.close_connection = True
            return 0, None
        if "DEAD" in prompt:
            return 500, {"error": "no GPU"}
        if "STRANGE" in prompt:
            return 200, {"choices": []}
        text = f" {prompt[::-1]} {body['seed']}"
        chat = {"message": {"content": text}} if "messages" in body else {"text": text}
        choice = chat | {"finish_reason": "stop"}
        return 200, {"choices": [choice], "usage": {"completion_tokens": len(text)}}

    def _send(self, status: int, answer: Any) -> None:
        if not status:
            self.connection.close()
            return
        content = json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            pass  # the client did not wait


@pytest.fixture
def running() -> Iterator[_Server]:
    """A server in a thread."""
    with _Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_FIRST_PAUSE_SECONDS", 0.01)


def _means(running: _Server, **changes: Any) -> ServerMeans:
    values: dict[str, Any] = {"concurrency": 4, "timeout_seconds": 1.0}
    return ServerMeans(**{"url": running.url, "model": "teacher"} | values | changes)


def _request(text: str, message: str | None = None) -> Request:
    return Request(f"id {text}", "corpus.jsonl:1", 0, text, 3, message, 77)


def _answers(running: _Server, requests: list[Request], **changes: Any) -> list[Answer]:
    generator = ServerGenerator(_means(running, **changes), _SAMPLING)
    return list(generator.answers(iter(requests)))


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_it_asks_for_a_continuation(
    running: _Server, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    ((request, completion),) = _answers(  # type: ignore[misc]
        running, [_request("The bond")], url=running.url + suffix
    )
    assert request == _request("The bond")
    assert completion.text == " dnob ehT 77"
    assert completion.tokens == 12
    assert completion.finish_reason == "stop"
    ((path, headers, body),) = running.asked
    assert path == "/v1/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "teacher",
        "prompt": "The bond",
        "max_tokens": 16,
        "temperature": 0.7,
        "top_p": 0.9,
        "repetition_penalty": 1.05,
        "top_k": -1,
        "seed": 77,
    }


def test_it_asks_for_a_rewriting(running: _Server) -> None:
    ((_, completion),) = _answers(running, [_request("债券", "改写：债券")])  # type: ignore[misc]
    assert completion.text == " 券债：写改 77"
    ((path, _, body),) = running.asked
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "改写：债券"}]
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_as_many_requests_as_allowed_and_no_more_are_read(running: _Server) -> None:
    taken = 0

    def requests() -> Iterator[Request]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield _request(f"bond {number}")

    generator = ServerGenerator(_means(running), _SAMPLING)
    answered = 0
    for _ in generator.answers(requests()):
        answered += 1
        assert taken <= answered + 8
    assert answered == 100
    assert running.most == 4


@pytest.mark.parametrize("fault", ["OVERLOADED", "HANGS", "HANGS UP"])
def test_what_passes_is_tried_again(running: _Server, fault: str) -> None:
    requests = [_request(f"bond {n} {fault if n % 3 == 0 else ''}") for n in range(9)]
    answers = _answers(running, requests)
    assert sorted(answer[0].id for answer in answers) == sorted(  # type: ignore[index]
        request.id for request in requests
    )
    assert max(running.tries.values()) == {"OVERLOADED": 3, "HANGS": 2, "HANGS UP": 4}[fault]


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        ("TOO LONG", "HTTP 400: .*maximum context length is 8 tokens", 1),
        ("DEAD", "failed 7 times, the last: HTTP 500: .*no GPU", 7),
        ("STRANGE", "failed 7 times, the last: an answer without text", 7),
    ],
)
def test_what_does_not_pass_is_set_aside(
    running: _Server, fault: str, reason: str, tries: int
) -> None:
    answers = _answers(running, [_request("bond"), _request(fault), _request("yield")])
    (failed,) = [answer for answer in answers if isinstance(answer, Rejection)]
    assert len(answers) == 3
    assert failed.request == _request(fault)
    assert re.search(reason, failed.reason)
    assert running.tries[fault] == tries


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {"choices": {}},
        {"choices": [None]},
        *(
            {
                "choices": [{"text": text, "finish_reason": reason}],
                "usage": {"completion_tokens": n},
            }
            for text, n, reason in (
                (5, 1, "stop"),
                ({}, 1, None),
                ("half \ud800", 1, "stop"),
                ("a", "1", "stop"),
                ("a", -1, "stop"),
                ("a", True, "stop"),
                ("a", 1, None),
            )
        ),
    ],
)
def test_an_answer_that_is_none_can_be_tried_again(answer: Any) -> None:
    with pytest.raises(ValueError, match="an answer without text"):
        server._completion(answer)


def test_another_model_is_served(running: _Server) -> None:
    with pytest.raises(UserError, match="serves teacher, adapter; give that name"):
        ServerGenerator(_means(running, model="13b"), _SAMPLING)


def test_the_command_through_a_server(running: _Server, tmp_path: Path) -> None:
    key = "sk-canary-of-the-environment"
    texts = [document(n) for n in range(30)] + ["TOO LONG " + document(1)]
    corpus = write_texts(tmp_path / "corpus.jsonl", texts)
    tokenizer = save_model(tmp_path / "model")
    job = Job(Path("teacher"), corpus, server=running.url, tokenizer=tokenizer, concurrency=8)
    ended = job.run(tmp_path / "out", {"OPENAI_API_KEY": key}, prefix_tokens="16:32")
    told = ended.stdout
    assert ended.returncode == 0, ended.stderr
    assert {headers["Authorization"] for _, headers, _ in running.asked} == {f"Bearer {key}"}
    kept = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [
        content
        for content in [*kept, told.encode(), ended.stderr.encode()]
        if key.encode() in content
    ]
    assert "30 samples, 1 rejected (generator 1)" in told
    made = records(tmp_path / "out")
    assert [sample["source"] for sample in made] == [f"corpus.jsonl:{n}" for n in range(1, 31)]
    for sample in made:
        assert sample["completion"] == f" {sample['prefix'][::-1]} {sample['seed']}"
        assert sample["model"] == "teacher"
    assert running.most <= 8
