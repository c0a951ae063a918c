"""Evaluate a model.

Example:
  python tools/evaluate.py perplexity --model export/finance --data held_out.jsonl --lengths 2048
"""

import argparse
import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

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
from dongwu_jax.evaluate.windows import Protocol
from dongwu_jax.output_files import check_output_file, write_output_file

if TYPE_CHECKING:
    from dongwu_jax.evaluate.perplexity import Perplexity


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run one evaluation."""
    options = _parse(arguments)
    options.run(options)
    return 0


def _perplexity(options: argparse.Namespace) -> None:
    # Only now: importing JAX takes seconds, and --help should not.
    import jax

    from dongwu_jax.evaluate.perplexity import measure, plan_tasks
    from dongwu_jax.evaluate.scoring import Scorer
    from dongwu_jax.evaluate.texts import read_token_stream
    from dongwu_jax.interop.inference import load_model

    console = Console(stderr=True)
    _check_perplexity_options(options)
    devices = jax.local_devices()
    model = load_model(options.model, options.dtype, options.tokenizer, devices, options.fsdp)
    scorer = Scorer(model)
    stream = read_token_stream(options.data, model.tokenizer, options.max_tokens)
    tasks = plan_tasks(stream, model.tokenizer, options.protocol, options.lengths, options.stride)
    longest = model.config.max_position_embeddings
    for length in options.lengths:
        if length > longest:
            console.print(f"note: --lengths {length} is beyond the model's {longest} positions")
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    results = []
    with Progress(*columns, console=console) as bar:
        for planned in tasks:
            task = bar.add_task(f"length {planned.length}", total=planned.spans.num_scored)
            result = measure(
                scorer,
                stream,
                planned,
                progress=functools.partial(bar.advance, task),
            )
            results.append(_as_record(result))
    about = {"model": str(options.model), "data": str(options.data), "dtype": model.dtype}
    _show(about, results)
    if options.json is not None:
        content = json.dumps(about | {"results": results}, indent=2, ensure_ascii=False) + "\n"
        write_output_file(options.json, content.encode())


def _check_perplexity_options(options: argparse.Namespace) -> None:
    if options.max_tokens is not None and options.max_tokens < 1:
        raise UserError(f"--max-tokens {options.max_tokens}: must be at least 1")
    for length in options.lengths:
        if length < 1:
            raise UserError(f"--lengths {length}: must be at least 1")
    if options.protocol == "sliding" and not 1 <= options.stride <= min(options.lengths):
        raise UserError(
            f"--stride {options.stride}: must be from 1 to the shortest of --lengths, "
            f"{min(options.lengths)}"
        )
    if options.json is not None:
        check_output_file(options.json)


def _as_record(result: "Perplexity") -> dict[str, Any]:
    task = result.task
    return {
        "protocol": task.protocol,
        "length": task.length,
        "stride": task.stride,
        "documents": task.documents,
        "tokens": result.tokens,
        "bytes": task.num_bytes,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens_per_second": result.tokens_per_second,
        "by_position": [
            {"first": part.first, "last": part.last, "perplexity": math.exp(part.loss)}
            for part in result.by_position
        ],
    }


class _Rate(ProgressColumn):
    """Tokens a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} tokens/s")


_SHOWN = (
    *("stride", "documents", "tokens", "bytes"),
    *("loss", "perplexity", "bits_per_byte", "tokens_per_second"),
)


def _show(about: dict[str, str], results: list[dict[str, Any]]) -> None:
    """A column for each length, and below them perplexity by position."""
    console = Console()
    console.print("  ".join(f"{name} {value}" for name, value in about.items()), highlight=False)
    title = f"perplexity, protocol {results[0]['protocol']}"
    table = Table("measure", *(f"length {result['length']}" for result in results), title=title)
    for name in _SHOWN:
        values = [result[name] for result in results]
        if values[0] is not None:
            table.add_row(name, *map(_figure, values))
    console.print(table)
    if any(result["by_position"] for result in results):
        console.print(_positions(results))


def _positions(results: list[dict[str, Any]]) -> Table:
    """Perplexity by tokens of context, a column for each length."""
    heads = (f"length {result['length']}" for result in results)
    table = Table("tokens of context", *heads, title="perplexity by position in the window")
    columns = [
        {(part["first"], part["last"]): part["perplexity"] for part in result["by_position"]}
        for result in results
    ]
    for first, last in sorted({ends for column in columns for ends in column}):
        cells = (column.get((first, last)) for column in columns)
        table.add_row(f"{first} to {last}", *("" if x is None else _figure(x) for x in cells))
    return table


def _figure(value: float | int) -> str:
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"


def _lengths(text: str) -> list[int]:
    """Whole numbers separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write whole numbers separated by commas, e.g. 4096,8192"
        ) from None


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(required=True, metavar="EVALUATION")
    perplexity = commands.add_parser(
        "perplexity",
        help="perplexity and bits per byte on text",
        description="Perplexity by one of three protocols. chunked: documents joined by the end "
        "token, cut into disjoint windows, every token predicted once from its own window. "
        "sliding: each document by itself, a window moved on by --stride, scoring the tokens that "
        "are new. truncate: the first tokens of each document that is long enough for all lengths.",
        epilog="example: python tools/evaluate.py perplexity --model export/finance "
        "--data held_out.jsonl --protocol sliding --lengths 2048,4096 --json result.json",
    )
    add = perplexity.add_argument
    add("--model", type=Path, required=True, help="Hugging Face folder, .gguf file or checkpoint")
    add(
        "--data",
        type=Path,
        required=True,
        help=".jsonl (key text), a text file, or the prefix of a .bin/.idx dataset",
    )
    add("--protocol", choices=get_args(Protocol), default="chunked", help="default: chunked")
    add(
        "--lengths",
        type=_lengths,
        default=[512],
        metavar="N,N",
        help="tokens in a window, several separated by commas (default 512)",
    )
    add("--stride", type=int, default=256, help="with --protocol sliding (default 256)")
    add("--max-tokens", type=int, help="predict at most this many tokens (default: all)")
    add("--json", type=Path, metavar="FILE", help="also write the result here")
    add("--dtype", choices=["float32", "bfloat16"], help="default: float32 on CPU, else bfloat16")
    add("--tokenizer", type=Path, help="tokenizer to use instead of the model's own")
    add("--fsdp", type=int, default=1, help="devices that share one copy of the weights (1)")
    perplexity.set_defaults(run=_perplexity)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
