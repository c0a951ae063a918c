"""Calibration text as whole sequences for all devices."""

from pathlib import Path

import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.on_devices import rows_for
from dongwu_jax.evaluate.texts import AnyTokenizer, read_token_stream


def calibration_batches(
    data: Path, tokenizer: AnyTokenizer, samples: int, length: int, devices: int
) -> list[np.ndarray]:
    """The first tokens of a text, documents joined and cut into sequences.

    Args:
        data: as `read_token_stream` takes it.
        samples: sequences, at most; a few less where they are not a multiple of the devices.
        length: tokens of each.

    Returns:
        int32 [batch, length] each; batch is a multiple of the devices.

    Raises:
        UserError: the text is too short for a sequence on each device.
    """
    tokens = read_token_stream(data, tokenizer, samples * length).tokens
    rows = min(samples, len(tokens) // length) // devices * devices
    if rows == 0:
        raise UserError(
            f"{data}: has {len(tokens)} tokens, and --samples {samples} of --length {length} on "
            f"{devices} devices need at least {devices * length}; give more text, or shorter ones"
        )
    at_once = rows_for(rows, length, devices)
    sequences = tokens[: rows * length].reshape(rows, length)
    return [sequences[first : first + at_once] for first in range(0, rows, at_once)]
