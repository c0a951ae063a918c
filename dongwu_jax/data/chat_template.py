"""Conversations as a model's own chat template writes them, with the answers marked.

A template is a Jinja program that comes with a tokenizer (Hugging Face's `chat_template`). It runs
in a sandbox, with the few extras that templates rely on.
"""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2

from dongwu_jax.data.template_sandbox import LimitedSandbox
from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object, read_text

Message = dict[str, Any]  # with role and content

# What the expressions of a template may raise; the sandbox leaves it to whoever renders.
_MISTAKES = (
    *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    *(RecursionError, MemoryError, SyntaxError),
)
_PUT_IN = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """The template of a tokenizer's folder.

    Raises:
        UserError: there is none, or it is no valid template.
    """

    def __init__(self, folder: Path) -> None:
        self.path, source, special = _find(folder)
        self._sandbox = LimitedSandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        self._sandbox.filters["tojson"] = _to_json
        self._sandbox.globals.update(
            raise_exception=_refuse, strftime_now=datetime.datetime.now().strftime, **special
        )
        try:
            self._template = self._sandbox.load(source)
        except _MISTAKES as error:
            raise UserError(f"{self.path}: is no valid chat template: {error}") from None

    def render(self, messages: Sequence[Message], begin_answer: bool = False) -> str:
        """The text of a conversation.

        Args:
            begin_answer: end with what the model's answer begins with.

        Raises:
            UserError: the template refuses these messages.
        """
        try:
            return self._sandbox.render(
                self._template, messages=messages, add_generation_prompt=begin_answer
            )
        except _MISTAKES as error:
            problem = str(error)[:300] or type(error).__name__
            raise UserError(f"{self.path}: the chat template refuses this: {problem}") from None

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and where the assistant's answers are in it.

        An answer begins behind what `begin_answer` writes, and ends with the token that ends it.

        Raises:
            UserError: the template refuses the messages, or writes earlier ones otherwise when
                others follow, so that it cannot be said what is an answer.
        """
        whole = self.render(messages)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], begin_answer=True)
            after = self.render(messages[: number + 1]).rstrip()
            if not (whole.startswith(after) and after.startswith(before)):
                raise UserError(
                    f"{self.path}: writes message {number + 1} otherwise when others follow, or "
                    "without the beginning of an answer; train on conversations of one answer"
                )
            spans.append((len(before), len(after)))
        return whole, spans


def _find(folder: Path) -> tuple[Path, str, dict[str, str]]:
    """File and text of the template, and the special tokens that it may name."""
    path = folder / "tokenizer_config.json"
    settings = read_json_object(path) if path.is_file() else {}
    special = {name: _text_of(settings.get(name)) for name in _PUT_IN}
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file, read_text(own_file), special
    source = settings.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = next((e["template"] for e in source if _is_default(e)), None)
    if not isinstance(source, str):
        raise UserError(
            f"{folder}: has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json); put one there"
        )
    return path, source, special


def _is_default(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("name") == "default" and "template" in entry


def _text_of(token: Any) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Not Jinja's own, which writes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)
