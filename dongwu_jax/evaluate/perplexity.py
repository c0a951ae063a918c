"""Perplexity and bits per byte of a model on text.

Protocol "chunked": documents are joined, each with its beginning token (if the tokenizer has the
habit) and its end token, and cut into disjoint windows. A window of `length` tokens predicts the
`length` tokens that follow each of its own, so that every token of the text but the first is
predicted exactly once, with at most `length` tokens of context and none from before its window.
Beginning tokens are given and not counted; end tokens are counted.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.evaluate.texts import TokenStream
from dongwu_jax.models.attention import causal_attention, choose_attention
from dongwu_jax.models.losses import next_token_losses
from dongwu_jax.models.parameters import Parameters, bind

_TOKENS_PER_BATCH = 8192
_LOSS_CHUNK = 1024


@dataclass(frozen=True)
class Windows:
    """Disjoint windows of a stream.

    Attributes:
        tokens, labels: int32 [windows, length].
        counted: float32 [windows, length]; 1 where the label is scored.
    """

    tokens: np.ndarray
    labels: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True)
class Perplexity:
    """What was measured.

    Attributes:
        tokens: predicted tokens that count.
        num_bytes: UTF-8 bytes of the text they spell.
        loss: mean negative log likelihood of a token, in nats.
        seconds: time of the computation, compilation and reading excluded.
    """

    protocol: str
    length: int
    tokens: int
    num_bytes: int
    documents: int
    loss: float
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp of the loss: the effective number of choices for a token."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, unlike perplexity."""
        return self.loss * self.tokens / (self.num_bytes * math.log(2))

    @property
    def tokens_per_second(self) -> float:
        """Rate of scoring."""
        return self.tokens / self.seconds


def cut_windows(stream: np.ndarray, length: int, ignored_label: int | None) -> Windows:
    """Disjoint windows and the tokens that follow; the last window is padded and masked.

    Args:
        stream: int32 [tokens].
        ignored_label: a token that is never scored, such as the beginning token.
    """
    predicted = len(stream) - 1
    count = -(-predicted // length)
    tokens, labels = np.zeros((2, count * length), np.int32)
    counted = np.zeros(count * length, np.float32)
    tokens[:predicted], labels[:predicted] = stream[:-1], stream[1:]
    counted[:predicted] = 1.0 if ignored_label is None else stream[1:] != ignored_label
    shape = (count, length)
    return Windows(tokens.reshape(shape), labels.reshape(shape), counted.reshape(shape))


def chunked_perplexity(
    config: ModelConfig,
    parameters: Parameters,
    stream: TokenStream,
    length: int,
    bos_id: int | None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Perplexity:
    """Measure the model by the protocol "chunked", computing in the dtype of its matrices.

    Args:
        length: tokens in a window.
        bos_id: the beginning token, which is not counted.
        progress: called with the number of tokens scored since the last call.
    """
    windows = cut_windows(stream.tokens, length, bos_id)
    rows = min(len(windows.tokens), max(1, _TOKENS_PER_BATCH // length))
    score = _compile(config, parameters, rows, length)
    total = 0.0
    start = time.perf_counter()
    for batch in _batches(windows, rows):
        losses = np.asarray(score(parameters, batch.tokens, batch.labels), np.float64)
        total += float((losses * batch.counted).sum())
        progress(int(batch.counted.sum()))
    tokens = int(windows.counted.sum())
    seconds = time.perf_counter() - start
    loss = total / tokens
    return Perplexity(
        "chunked", length, tokens, stream.num_bytes, stream.num_documents, loss, seconds
    )


def _batches(windows: Windows, rows: int) -> Iterator[Windows]:
    """Windows `rows` at a time; the last batch is padded with windows that count nothing."""
    for first in range(0, len(windows.tokens), rows):
        part = slice(first, first + rows)
        missing = max(0, first + rows - len(windows.tokens))
        padding = ((0, missing), (0, 0))
        yield Windows(
            np.pad(windows.tokens[part], padding),
            np.pad(windows.labels[part], padding),
            np.pad(windows.counted[part], padding),
        )


def _compile(
    config: ModelConfig, parameters: Parameters, rows: int, length: int
) -> Callable[[Parameters, np.ndarray, np.ndarray], jax.Array]:
    """Cross entropy of every position, float32 [rows, length], for (parameters, tokens, labels)."""
    dtype = jnp.dtype(parameters["embed_tokens"].dtype).name
    kernel = choose_attention("auto", config, dtype, jax.default_backend())
    chunk = _LOSS_CHUNK if length % _LOSS_CHUNK == 0 else 0

    def losses(parameters: Parameters, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        model = bind(config, parameters)
        positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
        attend = partial(causal_attention, implementation=kernel)
        hidden = model.hidden_states(model.embed(tokens), positions, attend)
        return next_token_losses(model, hidden, labels, chunk)

    shape = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    return jax.jit(losses).lower(parameters, shape, shape).compile()
