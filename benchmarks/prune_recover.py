"""Prune a real model and recover it in four ways with equal tokens: what each is worth.

  python benchmarks/prune_recover.py --model smollm2 --target num_layers=26 --calibration text.txt \
      --data data/corpus_text_document --held-out novel.txt manual.txt --output recovery

Cut at random or by activations, then trained on the text alone or by the whole model. Prints one
JSON line a case; `--plot recovery.png` draws the curves of an output folder that is complete.
Cases run side by side, one on each GPU of CUDA_VISIBLE_DEVICES (0,1,2,3).
"""

import argparse
import concurrent.futures
import json
from pathlib import Path
from typing import Any

from side_by_side import ROOT, on_a_gpu, run, visible_gpus

from dongwu_jax.command_line import run_command_line
from dongwu_jax.output_files import check_output_file

CASES = {
    "random, text alone": ("random", ["distillation.teacher=null"]),
    "random, distilled": ("random", []),
    "activations, text alone": ("activation", ["distillation.teacher=null"]),
    "activations, distilled": ("activation", []),
}
_CONFIG = ROOT / "configs" / "recover_smollm2.yaml"
_TOKENS_A_STEP = 64 * 1024  # as the configuration has it
_TICKS = (30, 35, 40, 50, 60, 80, 100)


def main() -> None:
    """Prune, train, evaluate."""
    options = _parse()
    if options.plot:
        _plot(options.output, options.plot)
        return
    check_output_file(options.output / "prune_random.log")
    gpus = visible_gpus()
    with concurrent.futures.ThreadPoolExecutor(gpus.qsize()) as pool:
        whole = pool.submit(on_a_gpu, gpus, _evaluate, options, options.model, "whole")
        cut = {
            method: pool.submit(on_a_gpu, gpus, _prune, options, method)
            for method in ("random", "activation")
        }
        _say({"case": "whole", **whole.result()})
        for method, found in cut.items():
            _say({"case": f"{method}, not trained", **found.result()})
        runs = {name: pool.submit(on_a_gpu, gpus, _recover, options, name) for name in CASES}
        for name, found in runs.items():
            _say({"case": name, **found.result()})


def _prune(gpu: str, options: argparse.Namespace, method: str) -> dict[str, Any]:
    out = options.output / method
    calibration = ["--calibration", str(options.calibration)] if method == "activation" else []
    run(
        gpu,
        options.output / f"prune_{method}.log",
        *(ROOT / "tools" / "prune.py", "--model", str(options.model), "--target", options.target),
        *("--method", method, "--out", str(out), "--overwrite", *calibration),
        *("--samples", "128", "--length", "1024"),
    )
    return _evaluate(gpu, options, out, method)


def _recover(gpu: str, options: argparse.Namespace, name: str) -> dict[str, Any]:
    method, overrides = CASES[name]
    folder = options.output / _file_name(name)
    data = json.dumps([{"prefix": str(p), "weight": w} for p, w in options.data])
    settings = [
        f"training.initial_weights={options.output / method}",
        f"training.duration={options.steps}",
        f"data.tokenizer={options.model}",
        f"data.blend={data}",
        f"data.index_cache={folder / 'index'}",
        f"distillation.teacher={options.model}",
        f"checkpoint.directory={folder / 'checkpoints'}",
        *([f"data.validation_blend={options.validation}"] if options.validation else []),
        *(["evaluation.interval=50", "evaluation.batches=1"] if options.validation else []),
        *options.set,
        *overrides,
    ]
    log = options.output / f"{_file_name(name)}.log"
    run(gpu, log, "-m", "dongwu_jax.train", "--config", str(_CONFIG), *settings)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    found = _evaluate(gpu, options, folder / "checkpoints", _file_name(name))
    return found | {
        "tokens_per_second": round(trained[-2]["tokens_per_second"]),
        "language_model_loss": trained[-1].get("language_model_loss", trained[-1]["loss"]),
    }


def _evaluate(gpu: str, options: argparse.Namespace, model: Path, name: str) -> dict[str, Any]:
    """Perplexity of each held-out text."""
    found: dict[str, Any] = {}
    for text in options.held_out:
        report = options.output / f"{name}_{text.stem}.json"
        run(
            gpu,
            options.output / f"evaluate_{name}.log",
            *(ROOT / "tools" / "evaluate.py", "perplexity", "--model", model, "--data", text),
            *("--lengths", "1024", "--max-tokens", "131072", "--json", report),
        )
        result = json.loads(report.read_text())["results"][0]
        found[f"perplexity_{text.stem}"] = round(result["perplexity"], 3)
    return found


def _file_name(case: str) -> str:
    return case.replace(", ", "_").replace(" ", "_")


def _plot(output: Path, png: Path) -> None:
    """Validation perplexity of every case against tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in CASES:
        lines = (output / _file_name(name) / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        steps = [r for r in records if "validation_perplexity" in r]
        tokens = [r["step"] * _TOKENS_A_STEP / 1e6 for r in steps]
        axes.plot(tokens, [r["validation_perplexity"] for r in steps], marker=".", label=name)
    axes.set(xlabel="million tokens", ylabel="perplexity of a held-out text", yscale="log")
    axes.set_yticks(_TICKS, [str(tick) for tick in _TICKS])
    axes.minorticks_off()
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(png, dpi=150)


def _say(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of all that is made")
    add("--plot", type=Path, metavar="PNG", help="draw the curves of --output, run nothing")
    add("--model", type=Path, help="the whole model, Hugging Face folder")
    add("--target", help="sizes to prune to, as tools/prune.py takes them")
    add("--calibration", type=Path, help="text for the activations")
    add("--data", type=_weighted, nargs="+", help="dataset prefixes, or PREFIX=WEIGHT")
    add("--validation", type=Path, help="dataset prefix evaluated every 50 steps")
    add("--held-out", type=Path, nargs="+", help="texts for the table")
    add("--steps", type=int, default=600, help="of 65,536 tokens (default 600)")
    add("--set", nargs="*", default=[], metavar="SECTION.FIELD=VALUE", help="of all runs")
    return parser.parse_args()


def _weighted(text: str) -> tuple[Path, float]:
    prefix, _, weight = text.partition("=")
    return Path(prefix).absolute(), float(weight or 1)


if __name__ == "__main__":
    run_command_line(main)
