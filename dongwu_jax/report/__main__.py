"""Make one HTML page of a run: curves, time and restarts, data, perplexity, settings.

Example:
    python -m dongwu_jax.report runs/13b
"""

import argparse
from pathlib import Path

from dongwu_jax.command_line import run_command_line
from dongwu_jax.output_files import check_output_file, write_output_file


def main(arguments: list[str] | None = None) -> int:
    """Read, render, write."""
    from dongwu_jax.report.page import render
    from dongwu_jax.report.run_folder import read_run_folder

    options = _parse(arguments)
    output = options.output or options.run / "report.html"
    run = read_run_folder(options.run, options.perplexity)
    check_output_file(output)
    content = render(run).encode()
    write_output_file(output, content)
    print(f"{output}: {len(content) / 1e6:.2f} MB, {len(run.metrics.step):,} lines of metrics")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dongwu_jax.report",
        description="Make one HTML page of a run, finished, stopped or running: loss and other "
        "curves against steps, tokens or hours, where the wall time went (goodput, restarts, "
        "steps done again), spikes and other unusual events, the data mix, perplexity, changes "
        "of settings. The file holds all it shows, and loads nothing.",
        epilog="example: python -m dongwu_jax.report runs/13b --output 13b.html",
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder that holds metrics.jsonl (logging.directory)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the page to write (default RUN/report.html)"
    )
    parser.add_argument(
        "--perplexity",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="report of `tools/evaluate.py perplexity --json`; may be repeated. Those in RUN are "
        "found by themselves",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
