"""What pruning did, for a file beside the model."""

from pathlib import Path
from typing import Any

import numpy as np

from dongwu_jax.compress.calibration import Calibration
from dongwu_jax.compress.importance import Importance
from dongwu_jax.compress.selection import Selection
from dongwu_jax.compress.shapes import parameter_count, shape_of
from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.output_files import check_output_file

Record = dict[str, Any]


def check_place(report: Path, *models: Path) -> None:
    """Refuse a file that cannot be written, or would lie among a model's.

    Raises:
        UserError: naming the place.
    """
    for model in models:
        if report.resolve().is_relative_to(model.resolve()):
            raise UserError(
                f"--report {report}: lies inside of {model}, which holds a model and nothing else; "
                f"name a file beside it, such as {model}.prune.json"
            )
    check_output_file(report)


def of_model(config: ModelConfig) -> Record:
    """Parameters and sizes."""
    return {"parameters": parameter_count(config), **vars(shape_of(config))}


def of_calibration(calibration: Calibration) -> Record:
    """Everything that scores depend on, but the model."""
    return {name: value for name, value in vars(calibration).items() if value is not None}


def of_layers(scores: Importance) -> list[float]:
    """The score of each layer, to six digits."""
    return [float(f"{score:.6g}") for score in scores.blocks]


def of_selection(selection: Selection) -> Record:
    """What is kept, by numbers in the whole model: "0-3,5" for 0, 1, 2, 3 and 5."""
    return {
        "hidden": ranges(selection.hidden),
        "blocks": [
            {
                "layer": block.layer,
                "mlp": ranges(block.mlp),
                "kv_heads": ranges(block.kv_heads),
                "heads": ranges(block.heads),
            }
            for block in selection.blocks
        ],
    }


def ranges(indices: np.ndarray) -> str:
    """Ascending numbers in few words."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    return ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
