"""Train a model, or go on training it.

Example:
    python -m dongwu_jax.train --config configs/quickstart.yaml model.num_layers=4
"""

import argparse
import faulthandler
import os
import sys
import time

from dongwu_jax import exit_codes
from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.config import RunConfig, dump_config, load_config
from dongwu_jax.config.help import config_help
from dongwu_jax.errors import UserError
from dongwu_jax.parallel.cluster_detection import Cluster, detect_cluster
from dongwu_jax.parallel.distributed import initialization_timeout, joined
from dongwu_jax.parallel.lifelines import Lifelines
from dongwu_jax.parallel.peers import Peers
from dongwu_jax.parallel.stop_agreement import StopAgreement
from dongwu_jax.training.faults.stopping import (
    StopSignals,
    end_this_process,
    stop_after,
    time_limit,
)
from dongwu_jax.training.faults.watchdog import Watchdog, make_watchdog
from dongwu_jax.training.records.profile import StepRange

_STANDARD_ERROR = 2  # the descriptor: sys.stderr may be none that a signal can use


def main(arguments: list[str] | None = None) -> int:
    """Parse, build, run; the exit code."""
    began = time.time()
    options = _parse(arguments)
    if options.help_config:
        print(config_help())
        return 0
    if options.config is None:
        raise UserError("--config is missing: name a YAML file, e.g. configs/quickstart.yaml")
    if options.stop_after is not None and options.stop_after < 0:
        raise UserError(f"--stop-after {options.stop_after}: must be 0 or more")
    timeout = initialization_timeout(options.initialization_timeout)
    exit_after = time_limit(options.exit_after) if options.exit_after else None
    if options.print_config:
        _print_config(load_config(options.config, options.overrides))
        return 0
    if options.explain_sharding:
        _explain_sharding(load_config(options.config, options.overrides), options.devices)
        return 0
    # A stack tells of a signal that ends the process, such as SIGBUS where a data file got shorter.
    faulthandler.enable(file=_STANDARD_ERROR, all_threads=False)
    # Joined first: a process that then fails, be it over the configuration, tells the others.
    cluster = _cluster(options)
    _allow_most_host_memory()
    with joined(cluster, timeout) as lifelines:
        config = load_config(options.config, options.overrides)
        peers = lifelines.peers if lifelines else Peers()
        agreement = StopAgreement(peers.switchboard)
        if exit_after is not None:
            stop_after(agreement, exit_after - (time.time() - began))
        # Around loading, too: opening the data is where a shared file system hangs.
        with (
            make_watchdog(config, peers) as watchdog,
            _stop_signals(agreement, lifelines),
        ):
            return _train(config, watchdog, agreement, peers, began, options, timeout)


def _stop_signals(agreement: StopAgreement, lifelines: Lifelines | None) -> StopSignals:
    return StopSignals(agreement, lifelines.stop if lifelines else end_this_process)


def _cluster(options: argparse.Namespace) -> Cluster | None:
    return detect_cluster(
        os.environ, options.coordinator_address, options.num_processes, options.process_id
    )


def _allow_most_host_memory() -> None:
    # Only now, here and below: importing JAX takes seconds, and --help should not.
    from dongwu_jax.training.checkpoints.host_memory import allow_most_host_memory

    allow_most_host_memory(os.environ)


def _print_config(config: RunConfig) -> None:
    from dongwu_jax.interop.initial_weights import resolve_initial_weights
    from dongwu_jax.interop.teacher import resolve_teacher

    print(dump_config(resolve_teacher(resolve_initial_weights(config)[0])[0]), end="")


def _explain_sharding(config: RunConfig, devices: int | None) -> None:
    import jax
    from rich.console import Console

    from dongwu_jax.interop.initial_weights import resolve_initial_weights
    from dongwu_jax.training.explain_sharding import explain_sharding

    if devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in explain_sharding(resolve_initial_weights(config)[0], jax.devices()):
        console.print(table)


def _train(
    config: RunConfig,
    watchdog: Watchdog,
    agreement: StopAgreement,
    peers: Peers,
    began: float,
    options: argparse.Namespace,
    timeout_seconds: float,
) -> int:
    """Run; the exit code."""
    from dongwu_jax.interop.initial_weights import resolve_initial_weights
    from dongwu_jax.interop.teacher import resolve_teacher
    from dongwu_jax.parallel.same_settings import check_same_settings
    from dongwu_jax.training.trainer import Trainer

    config, start = resolve_initial_weights(config)
    config, teacher = resolve_teacher(config)
    check_same_settings(config, timeout_seconds)
    trainer = Trainer(
        config, start, teacher, watchdog, began, agreement, options.profile_steps, peers
    )
    trainer.run(options.stop_after)
    return exit_codes.SAVED if trainer.stopped_early else exit_codes.DONE


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
        "--explain-sharding",
        action="store_true",
        help="show what every device holds of weights and activations, and exit",
    )
    parser.add_argument(
        "--devices",
        type=positive_int,
        metavar="N",
        help="with --explain-sharding: on so many devices instead of those that are here",
    )
    parser.add_argument(
        "--stop-after",
        type=int,
        metavar="N",
        help="save and stop after N steps of this run; 0 saves the initial weights",
    )
    parser.add_argument(
        "--exit-after",
        metavar="TIME",
        help="save and stop when this time has passed since the start, e.g. 3h50m, with exit code "
        f"{exit_codes.SAVED}: the same command goes on. SIGTERM and SIGUSR1 do the same at once",
    )
    parser.add_argument(
        "--profile-steps",
        type=StepRange.parse,
        metavar="FIRST:LAST",
        help="trace these steps, e.g. 10:13, into `profile` beside the metrics, with a table of "
        "kernels by time; python -m dongwu_jax.report shows it",
    )
    _add_cluster_flags(parser)
    options = parser.parse_intermixed_args(arguments)
    if options.devices is not None and not options.explain_sharding:
        parser.error("--devices: only with --explain-sharding; a training uses all that are here")
    return options


def _add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several processes", "found by themselves under Slurm, JobSet and MPI: docs/multihost.md"
    )
    group.add_argument("--coordinator-address", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=positive_int, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="number of this one, from 0")
    group.add_argument(
        "--initialization-timeout",
        type=float,
        metavar="SECONDS",
        help="how long the processes wait for each other at the start (default 300)",
    )


if __name__ == "__main__":
    run_command_line(main)
