"""Evaluate a model.

Examples:
  python tools/evaluate.py perplexity --model export/finance --data held_out.jsonl --lengths 2048
  python tools/evaluate.py passkey --model export/finance --lengths 4096,32768 --png map.png
  python tools/evaluate.py harness --model export/finance --tasks fineval --fineval-data FinEval
  python tools/evaluate.py compare export/base export/finance --data held_out.jsonl --output both
"""

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import yaml
from rich.console import Console

from dongwu_jax.command_line import positive_int, run_command_line, whole_number
from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.windows import Protocol
from dongwu_jax.output_files import check_output_file, write_json_file

if TYPE_CHECKING:
    from dongwu_jax.evaluate.scoring import Scorer

_console = Console(stderr=True)
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_DATA = ".jsonl (key text), a text file, or the prefix of a .bin/.idx dataset"


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
    from dongwu_jax.evaluate.texts import check_text, read_token_stream
    from dongwu_jax.progress_bars import token_bar

    _check_outputs(options)
    check_text(options.data)
    scorer = _load(options)
    tokenizer = scorer.model.tokenizer
    stream = read_token_stream(options.data, tokenizer, options.max_tokens)
    tasks = plan_tasks(stream, tokenizer, options.protocol, options.lengths, options.stride)
    _note_lengths(scorer, options.lengths)
    results = []
    for task in tasks:
        with token_bar(f"length {task.length}", task.spans.num_scored) as advance:
            results.append(as_record(measure(scorer, stream, task, advance)))
    about = _about(scorer, options) | {"data": str(options.data)}
    if options.json is not None:
        write_json_file(options.json, about | {"results": results})
    _print(about)
    show(results)
    if options.png is not None:
        title = f"{options.model.name} on {options.data.name}, protocol {options.protocol}"
        draw_perplexity(options.png, title, results)


def _passkey(options: argparse.Namespace) -> None:
    from dongwu_jax.evaluate.passkey import even_depths, make_cases, measure
    from dongwu_jax.evaluate.passkey_report import as_record, draw, show
    from dongwu_jax.progress_bars import token_bar

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
    _note_lengths(scorer, options.lengths)
    with token_bar("pass keys", sum(len(case.tokens) for case in cases)) as advance:
        results = measure(scorer, cases, advance)
    about = _about(scorer, options) | {"language": options.language, "seed": str(options.seed)}
    if options.json is not None:
        write_json_file(options.json, about | {"results": list(map(as_record, results))})
    _print(about)
    show(results)
    if options.png is not None:
        draw(options.png, f"pass keys ({options.language}), {options.model.name}", results)


def _harness(options: argparse.Namespace) -> None:
    from dongwu_jax.evaluate.harness import run_tasks, select_tasks
    from dongwu_jax.evaluate.harness_report import as_record, show

    if options.json is not None:
        check_output_file(options.json)
    metadata = dict(options.metadata)
    if options.fineval_data is not None:
        metadata["fineval_data"] = str(options.fineval_data)
    tasks = select_tasks(options.tasks, include_path=options.include_path, metadata=metadata)
    scorer = _load(options)
    results = run_tasks(
        scorer,
        tasks,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        max_length=options.max_length,
    )
    about = _about(scorer, options)
    if options.json is not None:
        write_json_file(options.json, about | as_record(results))
    _print(about)
    show(results)


def _compare(options: argparse.Namespace) -> None:
    from dongwu_jax.evaluate.comparison import Computation, Measures, check, measured
    from dongwu_jax.evaluate.comparison_report import show

    measures = Measures(
        tuple(options.data),
        tuple(options.lengths),
        options.protocol,
        options.stride,
        options.max_tokens,
        options.fineval_data,
        options.num_fewshot,
        options.limit,
    )
    models, kept = [options.a, options.b], [options.output / f"{name}.json" for name in "ab"]
    check(models, measures, kept)
    computation = Computation(options.dtype, options.tokenizer)
    records = []
    for model, path in zip(models, kept, strict=True):
        load = functools.partial(_load, argparse.Namespace(**vars(options), model=model))
        records.append(measured(model, measures, computation, path, load))
    show(*records)


def _check_outputs(options: argparse.Namespace) -> None:
    """What is written at the end must be possible at the beginning."""
    from dongwu_jax.evaluate.plots import check_can_draw

    if options.json is not None:
        check_output_file(options.json)
    if options.png is not None:
        check_can_draw(options.png)
        if options.json is not None and options.png.resolve() == options.json.resolve():
            raise UserError(f"--json and --png {options.png}: are the same file")


def _load(options: argparse.Namespace) -> "Scorer":
    """The model on all devices of this process."""
    import jax

    from dongwu_jax.evaluate.scoring import Scorer
    from dongwu_jax.interop.loaded_model import load_model

    devices = jax.local_devices()
    model = load_model(options.model, options.dtype, options.tokenizer, devices, options.fsdp)
    return Scorer(model)


def _note_lengths(scorer: "Scorer", lengths: list[int]) -> None:
    longest = scorer.model.config.max_position_embeddings
    for length in lengths:
        if length > longest:
            _console.print(f"note: --lengths {length} is beyond the model's {longest} positions")


def _about(scorer: "Scorer", options: argparse.Namespace) -> dict[str, str]:
    return {"model": str(options.model), "dtype": scorer.model.dtype}


def _print(about: dict[str, str]) -> None:
    line = "  ".join(f"{name} {value}" for name, value in about.items())
    Console().print(line, highlight=False, soft_wrap=True)


def _lengths(text: str) -> list[int]:
    """Whole numbers separated by commas."""
    return [positive_int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    """Words separated by commas."""
    return [name for name in text.split(",") if name]


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=VALUE")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{text!r}: {value!r} is no YAML value") from None


def _limit(text: str) -> int | float:
    """Documents, or a fraction of them."""
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if 0 < limit < 1:
        return limit
    if limit >= 1 and limit.is_integer():
        return int(limit)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a positive whole number nor a fraction")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(required=True, metavar="EVALUATION")
    _add_perplexity(commands)
    _add_passkey(commands)
    _add_harness(commands)
    _add_compare(commands)
    return parser.parse_args(arguments)


def _add_perplexity(commands: _Commands) -> None:
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
    _add_model(parser)
    parser.add_argument("--data", type=Path, required=True, help=_DATA)
    _add_protocol(parser)
    _add_lengths(parser, [512])
    _add_outputs(parser, "perplexity against position and length")
    parser.set_defaults(run=_perplexity)


def _add_passkey(commands: _Commands) -> None:
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
    add(
        "--trials", type=positive_int, default=10, help="keys of each length and depth (default 10)"
    )
    add("--language", choices=["en", "zh"], default="en", help="of the text (default en)")
    add("--seed", type=whole_number, default=0, help="same seed, same keys (default 0)")
    _add_outputs(parser, "the heat map")
    parser.set_defaults(run=_passkey)


def _add_harness(commands: _Commands) -> None:
    parser = commands.add_parser(
        "harness",
        help="tasks of lm-evaluation-harness, FinEval among them",
        description="Runs tasks of lm-evaluation-harness (pip install 'dongwu_jax[eval]'), its "
        "own, ours (fineval) and those of --include-path. No code of data sets or models is run.",
        epilog="example: python tools/evaluate.py harness --model export/finance --tasks fineval "
        "--fineval-data FinEval/v2 --num-fewshot 5 --json fineval.json",
    )
    add = parser.add_argument
    _add_model(parser)
    add("--tasks", type=_names, required=True, metavar="A,B", help="tasks, groups or tags")
    add(
        "--num-fewshot",
        type=whole_number,
        metavar="N",
        help="examples in a prompt (default: the task's)",
    )
    add("--limit", type=_limit, metavar="N", help="documents of each task, or a fraction below 1")
    add("--include-path", type=Path, metavar="FOLDER", help="YAML files of your own tasks")
    _add_fineval(parser)
    add(
        "--metadata",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for tasks that ask for some, VALUE as in YAML; repeatable",
    )
    add("--max-length", type=positive_int, metavar="N", help="tokens of the longest input")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.set_defaults(run=_harness)


def _add_compare(commands: _Commands) -> None:
    parser = commands.add_parser(
        "compare",
        help="two models side by side, before and after: perplexity and FinEval",
        description="Measures two models alike and prints their perplexity on each text and "
        "length, and FinEval by category with a test whether they differ. Results are kept in "
        "--output: started again, it measures only what is missing.",
        epilog="example: python tools/evaluate.py compare /models/13b export/13b_32k "
        "--data held_out.jsonl --lengths 4096,32768 --fineval-data FinEval/v2 --output both",
    )
    add = parser.add_argument
    add("a", type=Path, metavar="A", help="the model before: any format of --model elsewhere")
    add("b", type=Path, metavar="B", help="the model after")
    add("--data", type=Path, nargs="+", default=[], metavar="TEXT", help=_DATA)
    _add_protocol(parser)
    _add_lengths(parser, [4096, 32768])
    _add_fineval(parser)
    add("--num-fewshot", type=whole_number, default=5, metavar="N", help="of FinEval (default 5)")
    add("--limit", type=positive_int, metavar="N", help="questions of each subject of FinEval")
    add("--output", type=Path, required=True, metavar="FOLDER", help="where results are kept")
    _add_computation(parser)
    parser.set_defaults(run=_compare)


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, required=True, help="any format that tools/convert.py reads")
    _add_computation(parser)


def _add_computation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dtype", choices=["float32", "bfloat16"], help="default: float32 on CPU, else bfloat16")
    add("--tokenizer", type=Path, help="tokenizer to use instead of the model's own")
    add(
        "--fsdp",
        type=positive_int,
        default=1,
        metavar="N",
        help="devices that share one copy of the weights, for a model too big for one (default 1)",
    )


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--protocol", choices=get_args(Protocol), default="chunked", help="default: chunked")
    add("--stride", type=positive_int, default=256, help="with --protocol sliding (default 256)")
    add("--max-tokens", type=positive_int, help="predict at most this many tokens (default: all)")


def _add_fineval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fineval-data", type=Path, metavar="FOLDER", help="FinEval's folder with dev/ and val/"
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
