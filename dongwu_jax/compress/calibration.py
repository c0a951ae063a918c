"""Calibration text as whole sequences for all devices, and what it says of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from dongwu_jax.compress.importance import Importance, measure_importance
from dongwu_jax.compress.layer_importance import loss_rises
from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.on_devices import rows_for
from dongwu_jax.evaluate.scoring import Scorer
from dongwu_jax.evaluate.texts import AnyTokenizer, TokenStream, read_token_stream
from dongwu_jax.evaluate.windows import Spans, chunked_spans
from dongwu_jax.evaluate.windows import batches as windows
from dongwu_jax.interop.loaded_model import LoadedModel, load_model
from dongwu_jax.progress_bars import token_bar

LayerImportance = Literal["block_influence", "perplexity"]


@dataclass(frozen=True)
class Calibration:
    """Text, and how a model runs over it.

    Attributes:
        text: as `read_token_stream` takes it.
        samples: sequences, at most.
        length: tokens of each.
        dtype, tokenizer, fsdp: as `load_model` takes them.
    """

    text: Path
    samples: int
    length: int
    dtype: str | None
    tokenizer: Path | None
    fsdp: int

    def load(self, model: Path) -> LoadedModel:
        """The model on all devices of this process."""
        devices = jax.local_devices()
        loaded = load_model(model, self.dtype, self.tokenizer, devices, self.fsdp)
        longest = loaded.config.max_position_embeddings
        if self.length > longest:
            raise UserError(
                f"--length {self.length}: {model} is meant for {longest} tokens; what it computes "
                "beyond says nothing of its parts"
            )
        return loaded

    def batches(self, tokenizer: AnyTokenizer, devices: int) -> list[np.ndarray]:
        """The first tokens of the text, documents joined and cut into sequences.

        Returns:
            int32 [batch, length] each; batch is a multiple of the devices.

        Raises:
            UserError: the text is too short for a sequence on each device.
        """
        stream = read_token_stream(self.text, tokenizer, self.samples * self.length)
        return self._batches(stream, self._rows(len(stream.tokens), devices), devices)

    def halves(self, tokenizer: AnyTokenizer, devices: int) -> tuple[list[np.ndarray], "HeldOut"]:
        """As `batches`, and as many tokens again, which follow them.

        Raises:
            UserError: the text is too short for two sequences on each device.
        """
        stream = read_token_stream(self.text, tokenizer, 2 * self.samples * self.length)
        rows = self._rows(len(stream.tokens) - 1, devices, parts=2)  # the last is only predicted
        first = rows * self.length
        spans = chunked_spans(first + 1, self.length)
        moved = Spans(spans.start + first, spans.stop + first, spans.scored + first)
        return self._batches(stream, rows, devices), HeldOut(stream, moved, self.length)

    def _rows(self, tokens: int, devices: int, parts: int = 1) -> int:
        """Sequences of each of so many parts of a text, a multiple of the devices."""
        if self.samples < devices:
            raise UserError(
                f"--samples {self.samples}: give at least one to each of {devices} devices"
            )
        rows = min(self.samples, tokens // self.length // parts) // devices * devices
        if rows == 0:
            raise UserError(
                f"{self.text}: has {tokens} tokens, and --samples {self.samples} of --length "
                f"{self.length} on {devices} devices need at least "
                f"{parts * devices * self.length}; give more text, or shorter ones"
            )
        return rows

    def _batches(self, stream: TokenStream, rows: int, devices: int) -> list[np.ndarray]:
        sequences = stream.tokens[: rows * self.length].reshape(rows, self.length)
        at_once = rows_for(rows, self.length, devices)
        return [sequences[first : first + at_once] for first in range(0, rows, at_once)]


@dataclass(frozen=True)
class HeldOut:
    """Text that gave no scores: windows of a stream."""

    stream: TokenStream
    spans: Spans
    length: int

    @property
    def num_tokens(self) -> int:
        """Predicted tokens."""
        return self.spans.num_scored

    def loss(
        self, model: LoadedModel, progress: Callable[[int], None] = lambda tokens: None
    ) -> float:
        """Mean negative log likelihood of a token, beginning tokens not counted, in nats.

        Args:
            progress: called with the number of tokens scored since the last call.
        """
        scorer = Scorer(model)
        rows = scorer.rows_for(len(self.spans), self.length)
        total = count = 0.0
        for batch in windows(self.stream.tokens, self.stream.given, self.spans, rows, self.length):
            losses = scorer(batch.tokens, batch.labels).losses.astype(np.float64)
            total += float((losses * batch.counted).sum())
            count += float(batch.counted.sum())
            progress(batch.predicted)
        return total / count


def importance(
    model: LoadedModel, batches: Sequence[np.ndarray], layers: LayerImportance
) -> Importance:
    """All scores that calibration text gives, with bars."""
    tokens = sum(batch.size for batch in batches)
    with token_bar("calibration", tokens) as advance:
        scores = measure_importance(model, batches, advance)
    if layers == "block_influence":
        return scores
    with token_bar("layers", tokens * (model.config.num_layers + 1)) as advance:
        return replace(scores, blocks=loss_rises(model, batches, advance))
