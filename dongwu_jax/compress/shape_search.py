"""Which shape of so many parameters: candidates are really pruned, and scored untrained."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dongwu_jax.compress import prune_report
from dongwu_jax.compress.calibration import Calibration, HeldOut, LayerImportance, importance
from dongwu_jax.compress.candidates import CLOSEST, Limits, candidate_shapes, parse_budget
from dongwu_jax.compress.choosing import choose, norm_scales
from dongwu_jax.compress.importance import Importance
from dongwu_jax.compress.pruned_source import PrunedSource
from dongwu_jax.compress.selection import Selection
from dongwu_jax.compress.shapes import Shape, parameter_count, resized, shape_of
from dongwu_jax.config import ModelConfig
from dongwu_jax.evaluate.perplexity import perplexity_of
from dongwu_jax.interop.loaded_model import LoadedModel
from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.model_source import ModelSource
from dongwu_jax.interop.sources import open_source
from dongwu_jax.models.parameters import parameter_shardings
from dongwu_jax.output_files import write_json_file
from dongwu_jax.progress_bars import token_bar


@dataclass(frozen=True)
class Search:
    """What a command line asks for.

    Attributes:
        budget: parameters, as `parse_budget` reads them.
        candidates: how many shapes to score, at most.
        layers: what tells how much a layer is worth.
        tensor_parallel: ranks that the result shall be split over.
        report: JSON file to write as well.
    """

    model: Path
    budget: str
    candidates: int
    calibration: Calibration
    layers: LayerImportance
    tensor_parallel: int
    report: Path | None


@dataclass(frozen=True)
class Scored:
    """A shape, and how well the model does in it before any training.

    Attributes:
        kept: the cheap estimate that candidates are chosen by, see `kept_importance`.
        loss: nats a token of text that gave no scores.
    """

    shape: Shape
    parameters: int
    kept: float
    loss: float

    @property
    def perplexity(self) -> float:
        """exp of the loss."""
        return perplexity_of(self.loss)


def run_search(job: Search) -> list[Scored]:
    """Score shapes and print them, the best first; nothing is written but the report.

    Raises:
        UserError: the model or the text cannot be read, or no shape has so many parameters.
    """
    if job.report is not None:
        prune_report.check_place(job.report, job.model)
    began = time.perf_counter()
    source = open_source(job.model)
    try:
        budget, fsdp = parse_budget(job.budget), job.calibration.fsdp
        shapes, limits = candidate_shapes(source.config, budget, job.tensor_parallel, fsdp)
        _announce(shapes, limits, budget, job)
        model = job.calibration.load(job.model)
        devices = model.sharding.mesh.devices.size
        batches, held_out = job.calibration.halves(model.tokenizer, devices)
        _say_which_tokens(job.calibration.text, held_out)
        scores = importance(model, batches, job.layers)
        whole = Scored(
            shape_of(source.config), parameter_count(source.config), 1.0, held_out.loss(model)
        )
        model = replace(model, parameters={})  # its memory is for the candidates
        best = _estimated_best(scores, shapes, source.config, job.candidates)
        ranked = sorted(_score(source, scores, best, model, held_out), key=lambda found: found.loss)
    finally:
        source.close()
    _show(whole, ranked, time.perf_counter() - began)
    if job.report is not None:
        _write_report(job.report, job, whole, ranked, limits, scores)
    return ranked


def kept_importance(scores: Importance, selection: Selection) -> float:
    """A cheap estimate of what is left of a model, from 0 to 1: a product of kept shares of scores.

    layers x hidden^2 x (feed-forward + heads) / 2: each of the two parts of a block takes its input
    from hidden channels and gives its output to them. A layer of negative score counts 0.
    """
    layers = np.array([block.layer for block in selection.blocks])
    mlp = [_share(scores.mlp[block.layer], block.mlp) for block in selection.blocks]
    heads = [_share(scores.heads[block.layer], block.heads) for block in selection.blocks]
    return (
        _share(np.maximum(scores.blocks, 0), layers)
        * _share(scores.hidden, selection.hidden) ** 2
        * float(np.mean(mlp + heads))
    )


def _share(scores: np.ndarray, kept: np.ndarray) -> float:
    total = scores.sum()
    return float(scores[kept].sum() / total) if total else 1.0


def pruned_model(
    source: ModelSource, scores: Importance, shape: Shape, like: LoadedModel
) -> LoadedModel:
    """What is kept of a model, on the devices and in the dtype of another one."""
    selection = choose(scores, shape, source.config)
    pruned = PrunedSource(source, selection, norm_scales(scores, selection))
    places = parameter_shardings(pruned.config, like.sharding)
    parameters = load_parameters(pruned.read, pruned.config, places, dtype=like.dtype)
    return replace(like, config=pruned.config, parameters=parameters)


def _estimated_best(
    scores: Importance, shapes: Sequence[Shape], whole: ModelConfig, count: int
) -> list[tuple[float, Shape]]:
    """Shapes with the most importance left, and how much."""
    estimated = [(kept_importance(scores, choose(scores, shape, whole)), shape) for shape in shapes]
    return sorted(estimated, key=lambda pair: -pair[0])[:count]


def _score(
    source: ModelSource,
    scores: Importance,
    shapes: Sequence[tuple[float, Shape]],
    like: LoadedModel,
    held_out: HeldOut,
) -> list[Scored]:
    found = []
    with token_bar("candidates", len(shapes) * held_out.num_tokens) as advance:
        for kept, shape in shapes:  # one after another: memory is that of one
            loss = held_out.loss(pruned_model(source, scores, shape, like), advance)
            parameters = parameter_count(resized(source.config, shape))
            found.append(Scored(shape, parameters, kept, loss if math.isfinite(loss) else math.inf))
    return found


def _announce(shapes: Sequence[Shape], limits: Limits, budget: int, job: Search) -> None:
    print(
        f"{len(shapes)} shapes have {CLOSEST:.0%} to 100% of {budget:,} parameters, with at most "
        f"{limits.width}% of the width and {limits.depth}% of the layers cut"
    )
    if limits != Limits():
        print(
            f"note: none has with {Limits().width}% and {Limits().depth}%; so much at once is hard "
            "to recover from: prune and train in two rounds"
        )
    if len(shapes) > job.candidates:
        print(f"the {job.candidates} that keep the most importance are scored")


def _say_which_tokens(text: Path, held_out: HeldOut) -> None:
    first = int(held_out.spans.start[0])
    print(
        f"{text}: importance from tokens 0 to {first - 1:,}, perplexity of the "
        f"{held_out.num_tokens:,} from {first:,} on"
    )


def _show(whole: Scored, ranked: Sequence[Scored], seconds: float) -> None:
    title = f"before any training; {seconds:.0f} s in all"
    sizes = ("layers", "hidden", "mlp", "heads/kv")
    table = Table("rank", "perplexity", "size", *sizes, "kept", title=title)
    for rank, found in enumerate((whole, *ranked)):
        shape = found.shape
        table.add_row(
            str(rank or "whole"),
            f"{found.perplexity:,.2f}",
            f"{found.parameters / 1e6:,.1f}M",
            *map(str, (shape.num_layers, shape.hidden_size, shape.intermediate_size)),
            f"{shape.num_heads}/{shape.num_kv_heads}",
            f"{found.kept:.3f}",
        )
    Console().print(table)
    for rank, found in enumerate(ranked, 1):
        print(f"{rank}: --target {found.shape}")


def _write_report(
    path: Path,
    job: Search,
    whole: Scored,
    ranked: Sequence[Scored],
    limits: Limits,
    scores: Importance,
) -> None:
    def record(found: Scored) -> prune_report.Record:
        return {
            "target": str(found.shape),
            "parameters": found.parameters,
            "perplexity": found.perplexity,
            "importance_kept": found.kept,
        }

    write_json_file(
        path,
        {
            "model": job.model,
            "search": job.budget,
            "limits": vars(limits),
            "tensor_parallel": job.tensor_parallel,
            "layer_importance": job.layers,
            "calibration": prune_report.of_calibration(job.calibration),
            "layer_scores": prune_report.of_layers(scores),
            "whole": record(whole),
            "candidates": [record(found) for found in ranked],
        },
    )
