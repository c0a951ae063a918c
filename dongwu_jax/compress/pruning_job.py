"""Pruning from start to end, as a command line runs it: score, choose, say what goes, write."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
from rich.console import Console
from rich.table import Table

from dongwu_jax.compress.calibration import calibration_batches
from dongwu_jax.compress.choosing import choose, norm_scales, random_scores
from dongwu_jax.compress.importance import Importance, measure_importance
from dongwu_jax.compress.magnitude import magnitude_scores
from dongwu_jax.compress.pruned_source import PrunedSource
from dongwu_jax.compress.selection import Selection
from dongwu_jax.compress.shapes import Shape, check_shape, parse_target, shape_of
from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.progress import token_bar
from dongwu_jax.interop.conversion import TargetOptions, check_folder, make_target
from dongwu_jax.interop.conversion_job import write_model
from dongwu_jax.interop.inference import load_model
from dongwu_jax.interop.model_source import ModelSource
from dongwu_jax.interop.sources import open_source
from dongwu_jax.plan.parameters import parameter_table

Method = Literal["activation", "magnitude", "random"]


@dataclass(frozen=True)
class Pruning:
    """What a command line asks for.

    Attributes:
        target: sizes, as `parse_target` reads them.
        drop_layers: blocks to leave out; None: those with the lowest scores.
        samples, length: of the calibration text.
        tensor_parallel: ranks that the result shall be split over; random pruning keeps as much of
            each rank's part, as the original did.
        fsdp: devices that share one copy of the weights while scoring.
    """

    model: Path
    out: Path
    target: str
    method: Method
    drop_layers: tuple[int, ...] | None
    calibration: Path | None
    samples: int
    length: int
    seed: int
    tensor_parallel: int
    options: TargetOptions
    dtype: str | None
    fsdp: int
    overwrite: bool
    dry_run: bool


def run_pruning(job: Pruning) -> None:
    """Prune, and print what is cut.

    Raises:
        UserError: the model, the text or the target cannot be read, or not be used so.
    """
    if job.method == "activation" and job.calibration is None:
        raise UserError("--method activation: needs --calibration, text like that of the use")
    source = open_source(job.model)
    try:
        shape = _shape(job, source.config)
        _check_place(job, source, shape)
        scores = _scores(job, source)
        balanced = job.tensor_parallel if job.method == "random" else 1
        selection = choose(scores, shape, source.config, job.drop_layers, balanced)
        pruned = PrunedSource(source, selection, norm_scales(scores, selection))
        _describe(source.config, pruned.config, selection)
        if job.dry_run:
            print("nothing was written")
        else:
            target = make_target(pruned, job.options)
            write_model("prune", pruned, job.out, target, job.options, job.overwrite)
    finally:
        source.close()


def _shape(job: Pruning, config: ModelConfig) -> Shape:
    shape = parse_target(job.target, config) if job.target else shape_of(config)
    if job.drop_layers is not None:
        if shape.num_layers != config.num_layers:
            raise UserError("--drop-layers says which layers go; leave num_layers out of --target")
        for layer in job.drop_layers:
            if layer >= config.num_layers:
                raise UserError(
                    f"--drop-layers {layer}: the model's layers are 0 to {config.num_layers - 1}"
                )
        shape = replace(shape, num_layers=config.num_layers - len(set(job.drop_layers)))
        if shape.num_layers == 0:
            raise UserError("--drop-layers: leaves no layer")
    check_shape(shape, config, job.tensor_parallel)
    return shape


def _check_place(job: Pruning, source: ModelSource, shape: Shape) -> None:
    """Whether the result can be written, before hours of scoring."""
    stand_in = choose(random_scores(source.config, 0), shape, source.config, job.drop_layers)
    target = make_target(PrunedSource(source, stand_in, {}), job.options)
    check_folder(job.out, target, job.overwrite)


def _scores(job: Pruning, source: ModelSource) -> Importance:
    if job.method == "random":
        return random_scores(source.config, job.seed)
    if job.method == "magnitude":
        return magnitude_scores(source)
    assert job.calibration is not None
    devices = jax.local_devices()
    model = load_model(job.model, job.dtype, job.options.tokenizer, devices, job.fsdp)
    batches = calibration_batches(
        job.calibration, model.tokenizer, job.samples, job.length, len(devices)
    )
    with token_bar("calibration", sum(batch.size for batch in batches)) as advance:
        return measure_importance(model, batches, advance)


def _describe(whole: ModelConfig, pruned: ModelConfig, selection: Selection) -> None:
    table = Table("size", "was", "is")
    for name, size in vars(shape_of(whole)).items():
        table.add_row(name, f"{size:,}", f"{getattr(shape_of(pruned), name):,}")
    had, left = (parameter_table(config).total for config in (whole, pruned))
    table.add_row("parameters", f"{had:,}", f"{left:,} ({left / had:.1%})")
    Console().print(table)
    kept = {block.layer for block in selection.blocks}
    dropped = [layer for layer in range(whole.num_layers) if layer not in kept]
    if dropped:
        print(f"layers left out: {', '.join(map(str, dropped))}")
