"""How likely a model finds the tokens that really come next: one forward pass, no sampling."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dongwu_jax.evaluate.on_devices import OnDevices, rows_for
from dongwu_jax.interop.loaded_model import LoadedModel
from dongwu_jax.models.cross_entropy import token_cross_entropy
from dongwu_jax.models.llama import Llama
from dongwu_jax.parallel.context import Attend

_HEAD_TOKENS = 1024  # of each sequence, whose logits exist at once

_Found = tuple[jax.Array, jax.Array]  # as in Scores


@dataclass(frozen=True)
class Scores:
    """Of every position.

    Attributes:
        losses: float32 [batch, length]; -log p(label).
        likeliest: bool [batch, length]; whether greedy decoding would choose the label.
    """

    losses: np.ndarray
    likeliest: np.ndarray


class Scorer:
    """Scores sequences on all devices of a model; each new shape is compiled once."""

    def __init__(self, model: LoadedModel):
        self.model = model
        self._devices = model.sharding.mesh.devices.size
        self._score = OnDevices(model, _scores)

    @functools.cached_property
    def _continue(self) -> OnDevices:
        return OnDevices(self.model, _next_tokens)

    def rows_for(self, sequences: int, length: int) -> int:
        """How many of so many sequences one call shall take, a multiple of the devices."""
        return rows_for(sequences, length, self._devices)

    def __call__(self, tokens: np.ndarray, labels: np.ndarray) -> Scores:
        """Score sequences that begin at position 0.

        Args:
            tokens, labels: int32 [batch, length]; batch is a multiple of the model's devices.
        """
        return Scores(*self._score(tokens, labels))

    def next_tokens(self, tokens: np.ndarray, last: np.ndarray) -> np.ndarray:
        """What may come after each sequence.

        Args:
            tokens: int32 [batch, length]; batch as above.
            last: int32 [batch]; the position of each sequence's last token.

        Returns:
            float32 [batch, vocab]; log p of each token.
        """
        return self._continue(tokens, last)

    def compile(self, rows: int, length: int) -> None:
        """Be ready for a shape."""
        self(*np.zeros((2, rows, length), np.int32))


def hidden_states(model: Llama, tokens: jax.Array, attend: Attend) -> jax.Array:
    """[batch, length, embed] of sequences that begin at position 0."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return model.hidden_states(model.embed(tokens), positions, attend)


def _logits(model: Llama, hidden: jax.Array) -> jax.Array:
    """float32 [batch, length, vocab] of hidden states [batch, length, embed].

    Never rounded to bfloat16, where the largest logits of a position are often equal.
    """
    config = model.config
    rows = config.vocab_rows if config.padded_vocab_in_softmax else config.vocab_size
    head = model.head()[:, :rows]
    return jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=jnp.float32)


def _next_tokens(model: Llama, tokens: jax.Array, last: jax.Array, attend: Attend) -> jax.Array:
    """Log probabilities after each sequence's last position, float32 [batch, vocab]."""
    hidden = hidden_states(model, tokens, attend)
    at_last = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    return jax.nn.log_softmax(_logits(model, at_last)[:, 0])


def _scores(model: Llama, tokens: jax.Array, labels: jax.Array, attend: Attend) -> _Found:
    """Losses and whether each label is the likeliest, a part of the sequence at a time."""
    hidden = hidden_states(model, tokens, attend)

    def part(hidden: jax.Array, labels: jax.Array) -> _Found:
        logits = _logits(model, hidden)
        return token_cross_entropy(logits, labels), jnp.argmax(logits, axis=-1) == labels

    length = labels.shape[1]
    if length <= _HEAD_TOKENS:
        return part(hidden, labels)
    padding = -length % _HEAD_TOKENS
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, padding)))

    def at(start: jax.Array) -> _Found:
        return part(
            jax.lax.dynamic_slice_in_dim(hidden, start, _HEAD_TOKENS, axis=1),
            jax.lax.dynamic_slice_in_dim(labels, start, _HEAD_TOKENS, axis=1),
        )

    parts = jax.lax.map(at, jnp.arange(0, length + padding, _HEAD_TOKENS))
    losses, likeliest = (jnp.concatenate(list(pieces), axis=1)[:, :length] for pieces in parts)
    return losses, likeliest
