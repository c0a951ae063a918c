"""What a run reads, opened and checked before its first step."""

from collections.abc import Sequence
from pathlib import Path

from dongwu_jax.config import RunConfig
from dongwu_jax.data.datasets import Datasets, build_datasets
from dongwu_jax.data.tokenizers import load_fitting_tokenizer, tokenizer_files
from dongwu_jax.errors import UserError


def checked_tokenizer_files(config: RunConfig) -> Sequence[Path]:
    """What to keep in every checkpoint: refused now, not when a checkpoint is to be used.

    Raises:
        UserError: the tokenizer cannot be used, or ends texts with another token than the data.
    """
    tokenizer = config.data.tokenizer
    if tokenizer is None:
        return ()
    end_token = load_fitting_tokenizer(tokenizer, config.model.vocab_size).eos_id
    if config.data.eod_mask_loss and config.data.eod_token != end_token:
        raise UserError(
            f"data.eod_token={config.data.eod_token}, but {tokenizer} ends texts with {end_token}; "
            "data.eod_mask_loss needs the right one"
        )
    return tokenizer_files(tokenizer)


def open_datasets(config: RunConfig) -> Datasets:
    """The samples of training and of its evaluations.

    Raises:
        UserError: they cannot be read, or are too few.
    """
    batch, interval = config.training.global_batch_size, config.evaluation.interval
    evaluations = config.steps // interval + 1 if interval else 0
    datasets = build_datasets(
        config.data,
        train_samples=config.steps * batch,
        validation_samples=evaluations * config.evaluation.batches * batch,
        vocab_size=config.model.vocab_size,
    )
    if datasets.validation is not None:
        _check_validation_samples(config, len(datasets.validation))
    return datasets


def _check_validation_samples(config: RunConfig, samples: int) -> None:
    """Fail before the first step, not at the evaluation that runs out of samples."""
    per_evaluation = config.evaluation.batches * config.training.global_batch_size
    in_megatron_order = config.data.order == "megatron"
    evaluations = config.steps // config.evaluation.interval if in_megatron_order else 1
    if evaluations * per_evaluation > samples:
        raise UserError(
            f"evaluation.batches={config.evaluation.batches}: the validation data has {samples} "
            f"samples, but {evaluations} evaluations need {evaluations * per_evaluation}; lower "
            "it, raise evaluation.interval, or give the datasets weights so that they are repeated"
        )
