"""Collect what the stages measured: tables.md and tables.png in the working folder.

Example:
    python3 examples/finance_llm/tables.py --work runs/finance_llm
"""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from results import Results

from dongwu_jax.command_line import run_command_line
from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.output_files import write_output_file


@dataclass(frozen=True)
class Row:
    """A model of the road.

    Attributes:
        name: of its results.
        origin: what was done to which model.
        run: the run that trained it, or None.
        shaped_as: a run whose model has the same shape.
        stage: whose minutes stand beside it, or None.
    """

    name: str
    origin: str
    run: str | None
    shaped_as: str
    stage: str | None


ROWS = (
    Row("base", "imported", None, "continued", None),
    Row("continued", "base, on finance text", "continued", "continued", "03_continue"),
    Row("extended", "continued, to longer windows", "extended", "extended", "04_extend"),
    Row("pruned", "extended, cut", None, "recovered", None),
    Row("recovered", "pruned, taught by extended", "recovered", "recovered", "05_compress"),
    Row("blended", "extended, on synthetic text too", "blended", "blended", "06_synthesize"),
    Row("tuned", "the whole model, on conversations", "tuned", "tuned", "07_finetune"),
)


def main(arguments: list[str] | None = None) -> int:
    """Read, write, print."""
    options = _parse(arguments)
    results = Results(options.work)
    if results.evaluation("base", "finance") is None:
        raise UserError(f"{options.work}: has no results/base.finance.json; run stage 02 first")
    text = "\n\n".join(filter(None, _tables(results))) + "\n"
    write_output_file(options.work / "tables.md", text.encode())
    print(text)
    try:
        from drawing import draw
    except ImportError:
        print("no drawing: it needs matplotlib, pip install 'dongwu_jax[eval]'")
        return 0
    draw(results, [row.name for row in ROWS], options.work / "tables.png")
    print(f"{options.work / 'tables.md'}, {options.work / 'tables.png'}")
    return 0


def _tables(results: Results) -> Iterable[str]:
    yield _models(results)
    yield _windows(results)
    yield _answers(results)
    yield _exports(results)
    yield _minutes(results)


def _models(results: Results) -> str:
    heads = ["model", "made from", "parameters"]
    heads += ["finance: perplexity", "bits per byte", "elsewhere: perplexity", "bits per byte"]
    heads += ["FinEval", "tokens trained", "tokens/s", "minutes of its stage"]
    rows = []
    for row in ROWS:
        if results.evaluation(row.name, "finance") is not None:
            seconds = results.seconds().get(row.stage or "")
            cells = [row.name, row.origin, _parameters(results, row.shaped_as)]
            cells += _perplexity(results, row.name, "finance")
            cells += _perplexity(results, row.name, "elsewhere")
            cells += [_fineval(results, row.name), *_training(results, row.run)]
            rows.append([*cells, "" if seconds is None else f"{seconds / 60:.1f}"])
    return _markdown(heads, rows)


def _parameters(results: Results, run: str) -> str:
    from dongwu_jax.models.parameters import abstract_parameters, parameter_count

    config = results.config(run)
    if config is None:
        return ""
    model = ModelConfig.model_validate(config["model"])
    return f"{parameter_count(abstract_parameters(model)) / 1e6:.1f} M"


def _perplexity(results: Results, name: str, kind: str) -> list[str]:
    record = results.evaluation(name, kind)
    if record is None:
        return ["", ""]
    (found,) = record["results"]
    return [f"{found['perplexity']:,.2f}", f"{found['bits_per_byte']:.3f}"]


def _fineval(results: Results, name: str) -> str:
    record = results.evaluation(name, "fineval")
    if record is None:
        return ""
    score = next(score for score in record["fineval"] if score["name"] == "All")
    return f"{score['correct']}/{score['total']}"


def _training(results: Results, run: str | None) -> list[str]:
    """Tokens trained, and the median of tokens a second."""
    metrics, config = results.metrics(run), results.config(str(run))
    rates = [record["tokens_per_second"] for record in metrics if "loss" in record]
    if config is None or not rates:
        return ["", ""]
    batch = config["training"]["global_batch_size"] * config["data"]["sequence_length"]
    return [f"{metrics[-1]['step'] * batch:,}", f"{statistics.median(rates):,.0f}"]


def _windows(results: Results) -> str:
    """Perplexity elsewhere by length of the window, before and after the extension."""
    found = {
        name: {result["length"]: result["perplexity"] for result in record["results"]}
        for name in ("continued", "extended")
        if (record := results.evaluation(name, "windows")) is not None
    }
    lengths = sorted({length for values in found.values() for length in values})
    rows = [
        [
            f"{length:,}",
            *(f"{values[length]:,.2f}" if length in values else "" for values in found.values()),
        ]
        for length in lengths
    ]
    return _markdown(["window, perplexity elsewhere", *found], rows)


def _answers(results: Results) -> str:
    """Loss of held-out answers at the first and the last evaluation of the fine-tuning."""
    losses = [
        [f"{record['step']:,}", f"{record['validation_loss']:.3f}"]
        for record in results.metrics("tuned")
        if "validation_loss" in record
    ]
    return _markdown(
        ["step", "loss of held-out answers"], [losses[0], losses[-1]] if losses else []
    )


def _exports(results: Results) -> str:
    rows = []
    for name, size in results.export_bytes().items():
        rows.append([name, f"{size / 1e6:,.0f}", _perplexity(results, name, "finance")[0]])
    return _markdown(["export", "MB", "finance: perplexity, float32"], rows)


def _minutes(results: Results) -> str:
    seconds = results.seconds()
    rows = [[name, f"{value / 60:.1f}"] for name, value in seconds.items()]
    return _markdown(["stage", "minutes"], [*rows, ["all", f"{sum(seconds.values()) / 60:.1f}"]])


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, or nothing where it has no rows."""
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, metavar="FOLDER", help="WORK of the stages"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
