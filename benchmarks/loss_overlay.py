"""Train the same run twice, once with a setting changed, and compare the losses.

    python benchmarks/loss_overlay.py --against precision.matmul=fp8 \\
        data.blend=corpus/train_text_document [section.field=value ...]

Both runs are `python -m dongwu_jax.train` with benchmarks/loss_overlay.yaml and the given settings.
Prints a JSON line: the mean loss of the last 20 steps of both, and the largest relative difference
between the two losses, each averaged over 20 steps, at any step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from dongwu_jax.command_line import run_command_line
from dongwu_jax.errors import UserError

_CONFIG = Path(__file__).with_suffix(".yaml")
_WINDOW = 20  # steps


def main() -> int:
    """Run both and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against",
        action="append",
        required=True,
        metavar="SETTING",
        help="section.field=value of the second run; may be repeated",
    )
    parser.add_argument(
        "settings", nargs="*", metavar="section.field=value", help="settings of both runs"
    )
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        plain = _losses(options.settings, Path(folder) / "plain")
        changed = _losses([*options.settings, *options.against], Path(folder) / "changed")
    window = np.ones(_WINDOW) / _WINDOW
    smooth, smooth_changed = (np.convolve(x, window, "valid") for x in (plain, changed))
    difference = np.abs(smooth_changed / smooth - 1)
    figures = {
        "steps": len(plain),
        "against": options.against,
        "first_loss": round(float(plain[0]), 4),
        "last_loss": round(float(smooth[-1]), 4),
        "last_loss_changed": round(float(smooth_changed[-1]), 4),
        "largest_difference": round(float(difference.max()), 5),
        "at_step": int(difference.argmax()) + _WINDOW,
    }
    print(json.dumps(figures))
    return 0


def _losses(settings: list[str], folder: Path) -> np.ndarray:
    """The loss of every step, float64 [steps]."""
    command = [sys.executable, "-m", "dongwu_jax.train", "--config", str(_CONFIG), *settings]
    command.append(f"checkpoint.directory={folder / 'checkpoints'}")
    run = subprocess.run(command, stdout=sys.stderr)
    if run.returncode:
        raise UserError(f"training failed: {' '.join(command)}")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return np.array([entry["loss"] for entry in map(json.loads, lines) if "loss" in entry])


if __name__ == "__main__":
    run_command_line(main)
