"""Evaluate a model.

Example:
  python tools/evaluate.py perplexity --model export/finance --data held_out.jsonl --length 2048
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dongwu_jax.command_line import run_command_line
from dongwu_jax.errors import UserError
from dongwu_jax.output_files import check_output_file, write_output_file


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run one evaluation."""
    options = _parse(arguments)
    options.run(options)
    return 0


def _perplexity(options: argparse.Namespace) -> None:
    # Only now: importing JAX takes seconds, and --help should not.
    from dongwu_jax.evaluate.perplexity import chunked_perplexity
    from dongwu_jax.evaluate.texts import read_token_stream
    from dongwu_jax.interop.inference import load_model

    console = Console(stderr=True)
    if options.length < 1:
        raise UserError(f"--length {options.length}: must be at least 1")
    if options.max_tokens is not None and options.max_tokens < 1:
        raise UserError(f"--max-tokens {options.max_tokens}: must be at least 1")
    if options.json is not None:
        check_output_file(options.json)
    model = load_model(options.model, options.dtype, options.tokenizer)
    longest = model.config.max_position_embeddings
    if options.length > longest:
        console.print(f"note: --length {options.length} is beyond the model's {longest} positions")
    stream = read_token_stream(options.data, model.tokenizer, options.max_tokens)
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("tokens", total=len(stream.tokens) - 1)
        result = chunked_perplexity(
            model.config,
            model.parameters,
            stream,
            options.length,
            model.tokenizer.bos_id,
            progress=lambda tokens: bar.advance(task, tokens),
        )
    report: dict[str, Any] = {
        "protocol": result.protocol,
        "model": str(options.model),
        "data": str(options.data),
        "dtype": model.dtype,
        "length": result.length,
        "documents": result.documents,
        "tokens": result.tokens,
        "bytes": result.num_bytes,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens_per_second": result.tokens_per_second,
    }
    _show(report)
    if options.json is not None:
        content = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        write_output_file(options.json, content.encode())


class _Rate(ProgressColumn):
    """Tokens a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} tokens/s")


def _show(report: dict[str, Any]) -> None:
    table = Table("measure", "value", title="perplexity")
    for name, value in report.items():
        table.add_row(name, f"{value:,.4f}" if isinstance(value, float) else str(value))
    Console().print(table)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(required=True, metavar="EVALUATION")
    perplexity = commands.add_parser(
        "perplexity",
        help="perplexity and bits per byte on text",
        description="Perplexity by the protocol 'chunked': documents joined by the end token, cut "
        "into disjoint windows, every token predicted once from its own window.",
        epilog="example: python tools/evaluate.py perplexity --model export/finance "
        "--data held_out.jsonl --length 2048 --json result.json",
    )
    add = perplexity.add_argument
    add("--model", type=Path, required=True, help="Hugging Face folder, .gguf file or checkpoint")
    add(
        "--data",
        type=Path,
        required=True,
        help=".jsonl (key text), a text file, or the prefix of a .bin/.idx dataset",
    )
    add("--length", type=int, default=512, help="tokens in a window (default 512)")
    add("--max-tokens", type=int, help="predict at most this many tokens (default: all)")
    add("--json", type=Path, metavar="FILE", help="also write the result here")
    add("--dtype", choices=["float32", "bfloat16"], help="default: float32 on CPU, else bfloat16")
    add("--tokenizer", type=Path, help="tokenizer to use instead of the model's own")
    perplexity.set_defaults(run=_perplexity)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
