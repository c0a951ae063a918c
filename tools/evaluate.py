"""Evaluate a model.

Examples:
  python tools/evaluate.py perplexity --model export/finance --data held_out.jsonl --lengths 2048
  python tools/evaluate.py passkey --model export/finance --lengths 4096,32768 --png map.png
"""

import argparse
import functools
import json
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
from rich.text import Text

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.windows import Protocol
from dongwu_jax.output_files import check_output_file, write_output_file

if TYPE_CHECKING:
    from dongwu_jax.evaluate.scoring import Scorer

_console = Console(stderr=True)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run one evaluation."""
    options = _parse(arguments)
    options.run(options)
    return 0


# What computes is imported by what runs it: JAX takes seconds to import, and --help should not.


def _perplexity(options: argparse.Namespace) -> None:
    from dongwu_jax.evaluate.perplexity import measure, plan_tasks
    from dongwu_jax.evaluate.perplexity_report import as_record, show
    from dongwu_jax.evaluate.plots import draw_perplexity
    from dongwu_jax.evaluate.texts import read_token_stream

    if options.protocol == "sliding" and options.stride > min(options.lengths):
        raise UserError(
            f"--stride {options.stride}: must be from 1 to the shortest of --lengths, "
            f"{min(options.lengths)}"
        )
    _check_outputs(options)
    scorer = _load(options)
    tokenizer = scorer.model.tokenizer
    stream = read_token_stream(options.data, tokenizer, options.max_tokens)
    tasks = plan_tasks(stream, tokenizer, options.protocol, options.lengths, options.stride)
    results = []
    with _progress() as bar:
        for planned in tasks:
            task = bar.add_task(f"length {planned.length}", total=planned.spans.num_scored)
            advance = functools.partial(bar.advance, task)
            results.append(as_record(measure(scorer, stream, planned, advance)))
    about = _about(scorer, options) | {"data": str(options.data)}
    _print(about)
    show(results)
    _write_json(options.json, about | {"results": results})
    if options.png is not None:
        title = f"{options.model.name} on {options.data.name}, protocol {options.protocol}"
        draw_perplexity(options.png, title, results)


def _passkey(options: argparse.Namespace) -> None:
    from dongwu_jax.evaluate.passkey import even_depths, make_cases, measure
    from dongwu_jax.evaluate.passkey_report import as_record, draw, show

    _check_outputs(options)
    scorer = _load(options)
    cases = make_cases(
        scorer.model.tokenizer,
        sorted(options.lengths),
        even_depths(options.depths),
        options.trials,
        options.language,
        options.seed,
    )
    with _progress() as bar:
        task = bar.add_task("pass keys", total=sum(len(case.tokens) for case in cases))
        results = measure(scorer, cases, functools.partial(bar.advance, task))
    about = _about(scorer, options) | {"language": options.language, "seed": str(options.seed)}
    _print(about)
    show(results)
    _write_json(options.json, about | {"results": list(map(as_record, results))})
    if options.png is not None:
        draw(options.png, f"pass keys ({options.language}), {options.model.name}", results)


def _check_outputs(options: argparse.Namespace) -> None:
    """What is written at the end must be possible at the beginning."""
    from dongwu_jax.evaluate.plots import check_can_draw

    if options.json is not None:
        check_output_file(options.json)
    if options.png is not None:
        check_can_draw(options.png)


def _load(options: argparse.Namespace) -> "Scorer":
    """The model on all devices of this process."""
    import jax

    from dongwu_jax.evaluate.scoring import Scorer
    from dongwu_jax.interop.inference import load_model

    devices = jax.local_devices()
    model = load_model(options.model, options.dtype, options.tokenizer, devices, options.fsdp)
    longest = model.config.max_position_embeddings
    for length in options.lengths:
        if length > longest:
            _console.print(f"note: --lengths {length} is beyond the model's {longest} positions")
    return Scorer(model)


def _about(scorer: "Scorer", options: argparse.Namespace) -> dict[str, str]:
    return {"model": str(options.model), "dtype": scorer.model.dtype}


def _print(about: dict[str, str]) -> None:
    line = "  ".join(f"{name} {value}" for name, value in about.items())
    Console().print(line, highlight=False, soft_wrap=True)


def _write_json(path: Path | None, record: dict[str, Any]) -> None:
    if path is not None:
        content = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        write_output_file(path, content.encode())


def _progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress("{task.description}", *columns, console=_console)


class _Rate(ProgressColumn):
    """Tokens a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} tokens/s")


def _lengths(text: str) -> list[int]:
    """Whole numbers separated by commas."""
    return [positive_int(part) for part in text.split(",")]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(required=True, metavar="EVALUATION")
    _add_perplexity(commands)
    _add_passkey(commands)
    return parser.parse_args(arguments)


def _add_perplexity(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "perplexity",
        help="perplexity and bits per byte on text",
        description="Perplexity by one of three protocols. chunked: documents joined by the end "
        "token, cut into disjoint windows, every token predicted once from its own window. "
        "sliding: each document by itself, a window moved on by --stride, scoring the tokens that "
        "are new. truncate: the first tokens of each document that is long enough for all lengths.",
        epilog="example: python tools/evaluate.py perplexity --model export/finance "
        "--data held_out.jsonl --protocol sliding --lengths 2048,4096 --json result.json",
    )
    add = parser.add_argument
    _add_model(parser)
    add(
        "--data",
        type=Path,
        required=True,
        help=".jsonl (key text), a text file, or the prefix of a .bin/.idx dataset",
    )
    add("--protocol", choices=get_args(Protocol), default="chunked", help="default: chunked")
    _add_lengths(parser, [512])
    add("--stride", type=positive_int, default=256, help="with --protocol sliding (default 256)")
    add("--max-tokens", type=positive_int, help="predict at most this many tokens (default: all)")
    _add_outputs(parser, "perplexity against position and length")
    parser.set_defaults(run=_perplexity)


def _add_passkey(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "passkey",
        help="find a number hidden in long filler text",
        description="A pass key of five digits stands somewhere in filler text, and is asked for "
        "at its end. Counts the keys that greedy decoding would write, by length and depth.",
        epilog="example: python tools/evaluate.py passkey --model export/finance_32k "
        "--lengths 4096,8192,16384,32768 --png map.png",
    )
    add = parser.add_argument
    _add_model(parser)
    _add_lengths(parser, [512, 1024, 2048])
    add("--depths", type=positive_int, default=5, help="so many, evenly from 0 to 1 (default 5)")
    add("--trials", type=positive_int, default=10, help="keys of each length and depth (10)")
    add("--language", choices=["en", "zh"], default="en", help="of the text (default en)")
    add("--seed", type=int, default=0, help="same seed, same keys (default 0)")
    _add_outputs(parser, "the heat map")
    parser.set_defaults(run=_passkey)


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, required=True, help="Hugging Face folder, .gguf file or checkpoint")
    add("--dtype", choices=["float32", "bfloat16"], help="default: float32 on CPU, else bfloat16")
    add("--tokenizer", type=Path, help="tokenizer to use instead of the model's own")
    add(
        "--fsdp",
        type=positive_int,
        default=1,
        metavar="N",
        help="devices that share one copy of the weights, for a model too big for one (default 1)",
    )


def _add_lengths(parser: argparse.ArgumentParser, default: list[int]) -> None:
    parser.add_argument(
        "--lengths",
        type=_lengths,
        default=default,
        metavar="N,N",
        help=f"tokens, separated by commas (default {','.join(map(str, default))})",
    )


def _add_outputs(parser: argparse.ArgumentParser, drawing: str) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    parser.add_argument("--png", type=Path, metavar="FILE", help=f"draw {drawing}")


if __name__ == "__main__":
    run_command_line(main)
