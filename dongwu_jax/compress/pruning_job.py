"""Pruning from start to end, as a command line runs it: score, choose, say what goes, write."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from dongwu_jax.compress import prune_report
from dongwu_jax.compress.calibration import Calibration, LayerImportance, importance
from dongwu_jax.compress.choosing import choose, norm_scales, random_scores
from dongwu_jax.compress.importance import Importance
from dongwu_jax.compress.magnitude import magnitude_scores
from dongwu_jax.compress.pruned_source import PrunedSource
from dongwu_jax.compress.selection import Selection, everything
from dongwu_jax.compress.shapes import (
    Shape,
    check_shape,
    parameter_count,
    parse_target,
    resized,
    shape_of,
)
from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.conversion import TargetOptions, check_folder, make_target
from dongwu_jax.interop.conversion_job import write_model
from dongwu_jax.interop.model_source import ModelSource
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.targets import ModelTarget
from dongwu_jax.output_files import write_json_file

Method = Literal["activation", "magnitude", "random"]


@dataclass(frozen=True)
class Pruning:
    """What a command line asks for.

    Attributes:
        target: sizes, as `parse_target` reads them.
        drop_layers: blocks to leave out; None: those with the lowest scores.
        layers: what tells how much a layer is worth, of method activation.
        calibration: that method activation needs.
        seed: of method random.
        tensor_parallel: ranks that the result shall be split over; random pruning keeps as much of
            each rank's part, as the original did.
        report: JSON file to write as well.
    """

    model: Path
    out: Path
    target: str
    method: Method
    drop_layers: tuple[int, ...] | None
    layers: LayerImportance
    calibration: Calibration | None
    seed: int
    tensor_parallel: int
    options: TargetOptions
    report: Path | None
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
        _check_layer_importance(job, shape, source.config)
        target = _target(job, source, shape)
        scores = _scores(job, source)
        balanced = job.tensor_parallel if job.method == "random" else 1
        selection = choose(scores, shape, source.config, job.drop_layers, balanced)
        pruned = PrunedSource(source, selection, norm_scales(scores, selection))
        _describe(source.config, pruned.config, selection)
        if job.dry_run:
            print("nothing was written")
        else:
            write_model("prune", pruned, job.out, target, job.options, job.overwrite)
        if job.report is not None:
            write_json_file(job.report, _report(job, source.config, scores, selection))
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


def _check_layer_importance(job: Pruning, shape: Shape, whole: ModelConfig) -> None:
    if job.layers == "block_influence":
        return
    chosen = job.drop_layers is None and shape.num_layers < whole.num_layers
    if job.method != "activation" or not chosen:
        raise UserError(
            f"--layer-importance {job.layers}: has nothing to choose; it is for --method "
            "activation where num_layers of --target is below the model's and --drop-layers is not "
            "given"
        )


def _target(job: Pruning, source: ModelSource, shape: Shape) -> ModelTarget:
    """What will write the result, if it can be written: to be known before hours of scoring."""
    if job.out.resolve() == job.model.resolve():
        raise UserError(
            f"--output {job.out}: is the model itself, which is needed to learn from it; name "
            "another"
        )
    of_that_shape = everything(resized(source.config, shape))  # which parts does not matter
    target = make_target(PrunedSource(source, of_that_shape, {}), job.options)
    check_folder(job.out, target, job.overwrite)
    if job.report is not None:
        prune_report.check_place(job.report, job.out, job.model)
    return target


def _scores(job: Pruning, source: ModelSource) -> Importance:
    if job.method == "random":
        return random_scores(source.config, job.seed)
    if job.method == "magnitude":
        return magnitude_scores(source)
    assert job.calibration is not None
    model = job.calibration.load(job.model)
    batches = job.calibration.batches(model.tokenizer, model.sharding.mesh.devices.size)
    return importance(model, batches, job.layers)


def _describe(whole: ModelConfig, pruned: ModelConfig, selection: Selection) -> None:
    table = Table("size", "was", "is")
    for name, size in vars(shape_of(whole)).items():
        table.add_row(name, f"{size:,}", f"{getattr(shape_of(pruned), name):,}")
    had, left = parameter_count(whole), parameter_count(pruned)
    table.add_row("parameters", f"{had:,}", f"{left:,} ({left / had:.1%})")
    Console().print(table)
    kept = {block.layer for block in selection.blocks}
    dropped = [layer for layer in range(whole.num_layers) if layer not in kept]
    if dropped:
        print(f"layers left out: {', '.join(map(str, dropped))}")


def _report(
    job: Pruning, whole: ModelConfig, scores: Importance, selection: Selection
) -> prune_report.Record:
    by_method: prune_report.Record = {"method": job.method}
    if job.method == "random":
        by_method["seed"] = job.seed
    if job.method == "activation" and job.calibration is not None:
        by_method["layer_importance"] = job.layers
        by_method["calibration"] = prune_report.of_calibration(job.calibration)
    return {
        "model": job.model,
        **by_method,
        "tensor_parallel": job.tensor_parallel,
        "before": prune_report.of_model(whole),
        "after": prune_report.of_model(selection.config(whole)),
        "layer_scores": prune_report.of_layers(scores),
        "kept": prune_report.of_selection(selection),
    }
