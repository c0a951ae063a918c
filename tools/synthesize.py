"""Make synthetic text with a stronger model: vLLM continues or rewrites your documents.

Examples:
  python tools/synthesize.py --model /models/teacher --input corpus/*.jsonl --output synthetic \\
      --prefix-tokens 64:256 --max-new-tokens 512 --data-parallel 8
  python tools/synthesize.py --model /models/teacher-chat --input corpus/*.jsonl --output answers \\
      --template question_answer --language auto --dry-run 200

writes synthetic/part-00000.jsonl, ..., one sample a line: prefix, completion, text (which
tools/preprocess_data.py reads), and where it came from. Started again after it was stopped or
killed, it makes what is missing. Needs vLLM (pip install 'dongwu_jax[vllm]') or a --server.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dongwu_jax.command_line import number, positive_int, run_command_line, whole_number
from dongwu_jax.distill.synthesis.templates import CONTINUE, LANGUAGES, TEMPLATES
from dongwu_jax.errors import UserError

if TYPE_CHECKING:
    from dongwu_jax.distill.synthesis.generators import Means

_SET_BY_FLAGS = {"model": "--model", "tensor_parallel_size": "--tensor-parallel"}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and generate."""
    options = _parse(arguments)
    from dongwu_jax.data.jsonl import expand_inputs
    from dongwu_jax.distill.synthesis.job import Synthesis, dry_run, run_synthesis
    from dongwu_jax.distill.synthesis.recipe import Recipe, Sampling

    sampling = Sampling(
        options.max_new_tokens, options.temperature, options.top_p, options.repetition_penalty
    )
    default_prefix = (64, 256) if options.template == CONTINUE else (256, 1024)
    recipe = Recipe(
        text_key=options.json_key,
        template=options.template,
        language=options.language,
        prefix_tokens=options.prefix_tokens or default_prefix,
        min_document_tokens=options.min_document_tokens,
        rounds=options.rounds,
        seed=options.seed,
        limit=options.limit,
        documents_per_part=max(1, options.records_per_part // options.rounds),
        sampling=sampling,
    )
    job = Synthesis(
        recipe,
        _means(options),
        options.tokenizer or Path(options.model),
        tuple(expand_inputs(options.input)),
        options.output,
        options.data_parallel,
        options.rank,
        options.world,
    )
    return dry_run(job, options.dry_run) if options.dry_run else run_synthesis(job)


def _means(options: argparse.Namespace) -> "Means":
    from dongwu_jax.distill.synthesis.generators import EngineMeans, ServerMeans

    if options.server is None:
        chosen: dict[str, Any] = dict(options.engine_option)
        for name, flag in _SET_BY_FLAGS.items():
            if name in chosen:
                raise UserError(f"--engine-option {name}: say it with {flag}")
        return EngineMeans(str(Path(options.model)), options.tensor_parallel, chosen)
    for flag in ("data_parallel", "tensor_parallel", "engine_option"):
        if getattr(options, flag) not in (1, []):
            name = "--" + flag.replace("_", "-")
            raise UserError(f"{name} is for an engine of this process; give it to --server's")
    return ServerMeans(options.server, options.model, options.concurrency, options.server_timeout)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_text_flags(parser.add_argument_group("documents and samples"))
    _add_sampling_flags(parser.add_argument_group("sampling"))
    _add_engine_flags(parser.add_argument_group("engines"))
    return parser.parse_args(arguments)


def _add_text_flags(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--model", required=True, help="folder in Hugging Face's format; its name with --server")
    add("--input", nargs="+", required=True, metavar="FILE", help=".jsonl, .gz, .zst, or patterns")
    add("--output", type=Path, required=True, help="folder to write, or to go on with")
    add("--json-key", default="text", metavar="KEY", help="key of the text (default text)")
    add(
        "--template",
        choices=TEMPLATES,
        default=CONTINUE,
        help="continue the prefix (default), or have a chat model rewrite it",
    )
    add(
        "--language",
        choices=[*LANGUAGES, "auto"],
        default="auto",
        help="of the request to rewrite; auto: the language of each prefix (default)",
    )
    add(
        "--prefix-tokens",
        type=_range,
        metavar="MIN:MAX",
        help="length of a prefix, drawn anew for each sample, in tokens of the model (default "
        "64:256; to rewrite 256:1024, ending with a sentence)",
    )
    add(
        "--min-document-tokens",
        type=whole_number,
        default=0,
        metavar="N",
        help="set shorter documents aside (default: those shorter than the shortest prefix)",
    )
    add("--rounds", type=positive_int, default=1, help="samples of each document (default 1)")
    add("--limit", type=positive_int, metavar="N", help="use the first N documents only")
    add(
        "--records-per-part",
        type=positive_int,
        default=2000,
        metavar="N",
        help="samples of one file, which is what a kill can cost (default 2000)",
    )
    add(
        "--dry-run",
        type=positive_int,
        metavar="N",
        help="make N samples, write nothing, say how long all would take",
    )


def _add_sampling_flags(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--max-new-tokens", type=positive_int, default=512, help="of a sample (default 512)")
    add("--temperature", type=number, default=0.9, help="0 is greedy (default 0.9)")
    add("--top-p", type=_share, default=0.95, help="share of probability kept (default 0.95)")
    add(
        "--repetition-penalty",
        type=number,
        default=1.0,
        help="above 1 discourages repetition, and hurts figures and Chinese (default 1)",
    )
    add("--seed", type=whole_number, default=0, help="of prefixes and samples (default 0)")


def _add_engine_flags(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--tensor-parallel",
        type=positive_int,
        default=1,
        metavar="N",
        help="GPUs that share one copy of the weights; only where one cannot hold it (default 1)",
    )
    add(
        "--data-parallel",
        type=positive_int,
        default=1,
        metavar="N",
        help="engines on this host, each on its own GPUs (default 1)",
    )
    add(
        "--engine-option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of vllm.LLM, e.g. max_model_len=4096, quantization=fp8; may be repeated",
    )
    add("--server", metavar="URL", help="use a running vLLM server, e.g. http://host:8000")
    add("--tokenizer", type=Path, help="of the model, a folder or file (default: --model)")
    add(
        "--concurrency",
        type=positive_int,
        default=256,
        metavar="N",
        help="requests that --server has at a time (default 256)",
    )
    add(
        "--server-timeout",
        type=number,
        default=600.0,
        metavar="SECONDS",
        help="for one request to --server (default 600)",
    )
    add(
        "--world",
        type=positive_int,
        default=1,
        help="processes that share the job, on one shared folder (default 1)",
    )
    add("--rank", type=whole_number, default=0, help="which of them this is, from 0 (default 0)")


def _range(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal() and 0 < int(low) <= int(high)):
        raise argparse.ArgumentTypeError(f"{text!r}: write it as 64:256, the smaller first")
    return int(low), int(high)


def _share(text: str) -> float:
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
    return value


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r}: write it as max_model_len=4096")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a word, such as bfloat16


if __name__ == "__main__":
    run_command_line(main)
