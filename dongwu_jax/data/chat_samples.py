"""Lines of JSON with conversations to tokens, and which of them are trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dongwu_jax.data.chat_template import ChatTemplate, Message
from dongwu_jax.data.document_encoder import EncodedBlock, EncodedDocuments
from dongwu_jax.data.indexed_dataset import token_dtype
from dongwu_jax.data.jsonl import LineBlock, block_lines, parse_object
from dongwu_jax.data.tokenizers import HuggingFaceTokenizer, load_tokenizer, tokenizer_files
from dongwu_jax.errors import UserError

TOKENS, TRAINED = "chat", "chat_trained"  # names of the two datasets, after their prefix
_ROLES = ("system", "user", "assistant", "tool")


def marks_prefix(tokens: Path) -> Path:
    """Where the marks lie of a dataset of conversations.

    Raises:
        UserError: the dataset's name is no such dataset's.
    """
    if not tokens.name.endswith(f"_{TOKENS}"):
        raise UserError(
            f"data.blend: {tokens} is no dataset of conversations; data.format=chat needs "
            f"what tools/preprocess_chat.py writes, PREFIX_{TOKENS}"
        )
    return tokens.with_name(tokens.name.removesuffix(TOKENS) + TRAINED)


@dataclass(frozen=True)
class ChatSample:
    """One conversation.

    Attributes:
        tokens: int64 [length].
        trained: bool [length]; whether a token is of an answer, so that predicting it counts.
    """

    tokens: np.ndarray
    trained: np.ndarray


@dataclass(frozen=True)
class ChatSettings:
    """What decides the tokens of a conversation: the tokenizer's folder, with its template."""

    tokenizer_model: Path

    @property
    def dataset_names(self) -> list[str]:
        """Tokens, and beside them which are trained, 0 or 1."""
        return [TOKENS, TRAINED]

    @property
    def tokenizer_sources(self) -> list[Path]:
        """Files of tokenizer and template."""
        return tokenizer_files(self.tokenizer_model)

    def encoder(self) -> "ChatEncoder":
        """What encodes so."""
        return ChatEncoder(self.tokenizer_model)


class ChatEncoder:
    """Encodes conversations by the template and the tokenizer of a folder.

    Attributes:
        dtypes: of tokens, and of what says which are trained.

    Raises:
        UserError: there is no template, or no `tokenizer.json`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        tokenizer = load_tokenizer(folder)
        if not isinstance(tokenizer, HuggingFaceTokenizer):
            raise UserError(
                f"{folder}: chat data needs a tokenizer.json, whose special tokens can be written "
                "as text; a SentencePiece model alone has none"
            )
        self.dtypes = [token_dtype(tokenizer.vocab_size), np.dtype(np.uint8)]
        self._tokenizer = tokenizer
        self._template = ChatTemplate(folder)

    def __reduce__(self) -> tuple[type["ChatEncoder"], tuple[Path]]:
        """Another process makes its own: compiled templates cannot be sent."""
        return ChatEncoder, (self._folder,)

    def encode_block(self, block: LineBlock, skip_bad_lines: bool) -> EncodedBlock:
        """Encode all lines that are not blank.

        Raises:
            UserError: naming file and line of a bad one, unless those are skipped.
        """
        samples, bad_lines = [], []
        for number, line in block_lines(block):
            place = f"{block.path}:{number}"
            try:
                samples.append(self.encode(parse_conversation(line, place), place))
            except UserError as error:
                if not skip_bad_lines:
                    raise
                bad_lines.append(str(error))
        lengths = np.array([len(sample.tokens) for sample in samples], np.int64)
        columns = zip(
            ([s.tokens for s in samples], [s.trained for s in samples]), self.dtypes, strict=True
        )
        by_key = [
            EncodedDocuments(
                np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype),
                lengths,
                np.ones(len(samples), np.int64),
            )
            for arrays, dtype in columns
        ]
        return EncodedBlock(by_key, bad_lines)

    def encode(self, messages: Sequence[Message], place: str) -> ChatSample:
        """Tokens of a conversation.

        Args:
            place: where it stands, for errors.

        Raises:
            UserError: see `ChatTemplate.answers`, or there is no answer.
        """
        try:
            text, answers = self._template.answers(messages)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        if not answers:
            raise UserError(f"{place}: has no message of the assistant, so nothing to train on")
        ids, offsets = self._tokenizer.encode_with_offsets(text)
        starts = np.array([start for start, _ in offsets], dtype=np.int64)
        trained = np.zeros(len(ids), dtype=bool)
        for first, last in answers:
            trained |= (starts >= first) & (starts < last)
        return ChatSample(np.array(ids, dtype=np.int64), trained)


def parse_conversation(line: bytes, place: str) -> list[Message]:
    """The messages of a line: `messages`, or `prompt` and `response`.

    Args:
        place: file and line, for errors.

    Raises:
        UserError: naming the place, and what is wrong.
    """
    record = parse_object(line, place)
    if "messages" in record:
        return _checked(record["messages"], place)
    if "prompt" in record and "response" in record:
        asked = {"role": "user", "content": record["prompt"]}
        return _checked([asked, {"role": "assistant", "content": record["response"]}], place)
    raise UserError(f"{place}: needs `messages`, or `prompt` and `response`; has {sorted(record)}")


def _checked(messages: Any, place: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{place}: messages must be a list that is not empty")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise UserError(f"{place}: message {index + 1} needs a role of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str):
            raise UserError(f"{place}: message {index + 1} needs its text under `content`")
    return messages
