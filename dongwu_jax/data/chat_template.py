"""Conversations as a model's own chat template writes them, with the answers marked.

A template is a Jinja program that comes with a tokenizer (Hugging Face's `chat_template`). It runs
in Jinja's sandbox, with the few extras that templates rely on.
"""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

from dongwu_jax.errors import UserError

Message = dict[str, Any]  # with role and content

_PUT_IN = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """The template of a tokenizer's folder.

    Raises:
        UserError: there is none, or it is no valid template.
    """

    def __init__(self, folder: Path) -> None:
        self.path, source, special = _find(folder)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(
            raise_exception=_refuse, strftime_now=datetime.datetime.now().strftime, **special
        )
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"{self.path}: is no valid chat template: {error}") from None

    def render(self, messages: Sequence[Message], begin_answer: bool = False) -> str:
        """The text of a conversation.

        Args:
            begin_answer: end with what the model's answer begins with.

        Raises:
            UserError: the template refuses these messages.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=begin_answer)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise UserError(f"{self.path}: the chat template refuses this: {error}") from None

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
    path, settings = folder / "tokenizer_config.json", {}
    if path.is_file():
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    special = {name: _text_of(settings.get(name)) for name in _PUT_IN}
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file, own_file.read_text(encoding="utf-8"), special
    source = settings.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in source}
        source = named.get("default")
    if not isinstance(source, str):
        raise UserError(
            f"{folder}: has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json); put one there"
        )
    return path, source, special


def _text_of(token: Any) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Not Jinja's own, which writes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)
