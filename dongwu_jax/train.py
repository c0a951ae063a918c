"""Train a model, or go on training it.

Example:
    python -m dongwu_jax.train --config configs/quickstart.yaml model.num_layers=4
"""

import argparse

from dongwu_jax.command_line import run_command_line
from dongwu_jax.config import RunConfig, dump_config, load_config
from dongwu_jax.config.help import config_help
from dongwu_jax.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Parse, build, run."""
    options = _parse(arguments)
    if options.help_config:
        print(config_help())
        return 0
    if options.config is None:
        raise UserError("--config is missing: name a YAML file, e.g. configs/quickstart.yaml")
    if options.stop_after is not None and options.stop_after < 0:
        raise UserError(f"--stop-after {options.stop_after}: must be 0 or more")
    config = load_config(options.config, options.overrides)
    _run(config, options)
    return 0


def _run(config: RunConfig, options: argparse.Namespace) -> None:
    # Only now: importing JAX takes seconds, and --help should not.
    from dongwu_jax.interop.initial_weights import resolve_initial_weights
    from dongwu_jax.parallel.distributed import initialize_distributed
    from dongwu_jax.training.trainer import Trainer

    if not options.print_config:
        initialize_distributed()  # before anything reads arrays
    config, start = resolve_initial_weights(config)
    if options.print_config:
        print(dump_config(config), end="")
        return
    Trainer(config, start).run(options.stop_after)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dongwu_jax.train",
        description="Train a Llama model. The same command resumes a run that was stopped.",
        epilog="example: python -m dongwu_jax.train --config configs/quickstart.yaml "
        "model.num_layers=4 optimizer.learning_rate=3e-4",
    )
    parser.add_argument("--config", help="YAML file of the run")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.field=value",
        help="settings that win over the file",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved run and exit"
    )
    parser.add_argument(
        "--help-config", action="store_true", help="list every setting with its meaning and exit"
    )
    parser.add_argument(
        "--stop-after",
        type=int,
        metavar="N",
        help="save and stop after N steps of this run; 0 saves the initial weights",
    )
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
