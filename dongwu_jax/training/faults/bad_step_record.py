"""What is kept of a bad step for people: its numbers, and what it was to learn from."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from dongwu_jax.config import RunConfig
from dongwu_jax.data.gpt_dataset import SampleSource
from dongwu_jax.data.tokenizers import load_fitting_tokenizer
from dongwu_jax.output_files import write_json_file

_MOST_TOKENS = 512  # of each sample, as text: batches can be millions


class BadStepRecorder:
    """Writes `bad_steps/step_N.json` beside the run's metrics."""

    def __init__(self, config: RunConfig, dataset: SampleSource):
        self._directory = config.log_directory / "bad_steps"
        self._batch = config.training.global_batch_size
        self._dataset, self._vocab_size = dataset, config.model.vocab_size
        self._tokenizer = config.data.tokenizer

    def write(self, step: int, verdict: dict[str, Any]) -> Path:
        """Record a step whose batch is samples (step - 1) x batch to step x batch - 1.

        Raises:
            UserError: the file cannot be written.
        """
        samples = range((step - 1) * self._batch, step * self._batch)
        described = [self._dataset.describe(sample) for sample in samples]
        if self._tokenizer is not None:
            decode = load_fitting_tokenizer(self._tokenizer, self._vocab_size).decode
            for sample, description in zip(samples, described, strict=True):
                description["text_begins"] = decode(self._tokens(sample).tolist())
        path = self._directory / f"step_{step}.json"
        with contextlib.suppress(OSError):  # said by the next line
            self._directory.mkdir(parents=True, exist_ok=True)
        write_json_file(path, {"step": step, **verdict, "samples": described})
        return path

    def _tokens(self, sample: int) -> np.ndarray:
        row = self._dataset[sample]
        return (row["tokens"] if isinstance(row, dict) else row)[:_MOST_TOKENS]
