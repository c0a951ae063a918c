"""Text to measure a model on, as one stream of tokens with its size in bytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dongwu_jax.data.bos import beginning_ids
from dongwu_jax.data.indexed_dataset import IndexedDataset
from dongwu_jax.data.jsonl import parse_texts, read_lines
from dongwu_jax.data.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer
from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.windows import Spans
from dongwu_jax.input_files import read_text

AnyTokenizer = SentencePieceTokenizer | HuggingFaceTokenizer


@dataclass(frozen=True)
class TokenStream:
    """Documents one after another.

    Attributes:
        tokens: int32 [tokens]; each document with its beginning and end tokens.
        given: bool [tokens]; beginning tokens, which no model has to predict.
        bounds: int64 [documents + 1]; where each document begins in `tokens`, and their end.
        bytes: int64 [documents]; UTF-8 bytes of each. The last may be cut short.
    """

    tokens: np.ndarray
    given: np.ndarray
    bounds: np.ndarray
    bytes: np.ndarray

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(self.bytes)


@dataclass(frozen=True)
class _Document:
    tokens: list[int]
    num_bytes: int


def files_of(path: Path) -> list[Path]:
    """The files of a folder, or a file itself and an indexed dataset of that name."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    dataset = [path.with_name(path.name + suffix) for suffix in (".bin", ".idx")]
    return [file for file in (path, *dataset) if file.is_file()]


def check_text(data: Path) -> None:
    """Whether there is something to read at all, before a model is loaded to read it with.

    Raises:
        UserError: there is no such file or dataset.
    """
    if not files_of(data):
        raise UserError(f"{data}: no such file, and no indexed dataset {data}.idx")


def read_token_stream(data: Path, tokenizer: AnyTokenizer, max_tokens: int | None) -> TokenStream:
    """Read documents until there are `max_tokens` tokens to predict.

    Args:
        data: a .jsonl file (also .gz, .zst; one text under the key `text` a line), another text
            file (one document), or the prefix of an indexed dataset, whose tokens are taken as
            they are.

    Raises:
        UserError: the file is missing or damaged, or holds fewer than two tokens.
    """
    tokens: list[np.ndarray] = []
    num_bytes: list[int] = []
    num_tokens = 0
    limit = None if max_tokens is None else max_tokens + 1  # the first token is not predicted
    for document in _documents(data, tokenizer):
        if limit is not None and num_tokens + len(document.tokens) > limit:
            kept = document.tokens[: limit - num_tokens]
            document = _Document(kept, _decoded_bytes(tokenizer, kept))
        tokens.append(np.asarray(document.tokens, np.int32))
        num_tokens += len(document.tokens)
        num_bytes.append(document.num_bytes)
        if num_tokens == limit:
            break
    if num_tokens < 2:
        raise UserError(f"{data}: holds no text to predict")
    bounds = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    joined = np.concatenate(tokens)
    given = _beginnings(joined, bounds, tokenizer)
    stream = TokenStream(joined, given, bounds, np.array(num_bytes, np.int64))
    if predicted_bytes(stream, tokenizer, joined=True) < 1:
        raise UserError(f"{data}: holds no text to predict")
    return stream


def _beginnings(tokens: np.ndarray, bounds: np.ndarray, tokenizer: AnyTokenizer) -> np.ndarray:
    """Where the beginning token stands for a beginning: some tokenizers end texts with it too."""
    beginnings = tokens == (-1 if tokenizer.bos_id is None else tokenizer.bos_id)
    if tokenizer.bos_id == tokenizer.eos_id:
        first = np.zeros(len(tokens), bool)
        first[bounds[:-1][np.diff(bounds) > 0]] = True
        beginnings &= first
    return beginnings


def predicted_bytes(stream: TokenStream, tokenizer: AnyTokenizer, joined: bool) -> int:
    """UTF-8 bytes of the text without what is given: the first token of all, or of each document.

    Args:
        joined: whether documents are one text.
    """
    if joined:
        return int(stream.bytes.sum()) - _decoded_bytes(tokenizer, stream.tokens[:1].tolist())
    first = stream.bounds[:-1][np.diff(stream.bounds) > 0]
    given = sum(_decoded_bytes(tokenizer, [token]) for token in stream.tokens[first].tolist())
    return int(stream.bytes.sum()) - given


def prefix_bytes(stream: TokenStream, tokenizer: AnyTokenizer, spans: Spans) -> int:
    """UTF-8 bytes of the tokens that windows at the beginning of documents predict."""
    total = 0
    for start, stop in zip(spans.start.tolist(), spans.stop.tolist(), strict=True):
        tokens = stream.tokens[start : stop + 1].tolist()
        total += _decoded_bytes(tokenizer, tokens) - _decoded_bytes(tokenizer, tokens[:1])
    return total


def _documents(data: Path, tokenizer: AnyTokenizer) -> Iterator[_Document]:
    if data.is_dir():
        raise UserError(f"{data}: is a folder; name a text file or the prefix of a dataset in it")
    if data.with_name(data.name + ".idx").is_file():
        yield from _indexed_documents(data, tokenizer)
        return
    if data.suffix in (".bin", ".idx"):
        raise UserError(f"{data}: write the dataset without its ending: {data.with_suffix('')}")
    if not data.is_file():
        raise UserError(f"{data}: no such file, and no indexed dataset {data}.idx")
    start = beginning_ids(tokenizer)
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for text in _texts(data):
        yield _Document(start + tokenizer.encode(text) + end, len(text.encode()))


def _texts(data: Path) -> Iterator[str]:
    if ".jsonl" in data.suffixes:
        for path, number, line in read_lines([data]):
            yield from parse_texts(line, ["text"], path, number)[0]
        return
    yield read_text(data)


def _indexed_documents(prefix: Path, tokenizer: AnyTokenizer) -> Iterator[_Document]:
    dataset = IndexedDataset(prefix)
    for sequence in range(len(dataset)):
        tokens = dataset.get(sequence).tolist()
        if tokens and not 0 <= max(tokens) < tokenizer.vocab_size:
            raise UserError(
                f"{prefix}: sequence {sequence} holds token {max(tokens)}, the tokenizer has "
                f"{tokenizer.vocab_size}; the data were made with another tokenizer"
            )
        yield _Document(tokens, _decoded_bytes(tokenizer, tokens))


def _decoded_bytes(tokenizer: AnyTokenizer, tokens: list[int]) -> int:
    return len(tokenizer.decode(tokens).encode())
