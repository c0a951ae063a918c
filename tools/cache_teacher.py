"""Write down what a teacher holds likeliest after each token of a run's samples.

Example:
  python tools/cache_teacher.py --config configs/recover_smollm2.yaml --teacher /models/whole \\
      --output cache --top-k 64 data.blend=data/corpus_text_document
  python -m dongwu_jax.train --config configs/recover_smollm2.yaml data.blend=... \\
      distillation.teacher=null distillation.cache=cache

The run then learns from the cache, without the teacher in memory. It pays where several students
or runs read the same samples: it needs k x 4 + 2 bytes for each token (6 where the vocabulary has
more than 65,536). Started again after a stop, it goes on with the part that is missing.
"""

import argparse
from pathlib import Path

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.config import load_config


def main(arguments: list[str] | None = None) -> int:
    """Parse and write."""
    options = _parse(arguments)
    overrides = [*options.overrides, "distillation.teacher=null", "distillation.cache=null"]
    config = load_config(options.config, overrides)
    # Only now: JAX takes seconds to import, and --help should not.
    from dongwu_jax.distill.teacher_cache_job import Caching, write_cache
    from dongwu_jax.interop.initial_weights import resolve_initial_weights

    write_cache(
        Caching(
            resolve_initial_weights(config)[0],
            options.teacher,
            options.output,
            options.top_k,
            options.samples_per_part,
            options.dtype,
            options.fsdp,
        )
    )
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file of the run that will read it")
    add("overrides", nargs="*", metavar="section.field=value", help="settings of that run")
    add("--teacher", type=Path, required=True, help="any format that tools/convert.py reads")
    add(
        "--output",
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder to write, or to go on with",
    )
    add("--top-k", type=positive_int, default=64, help="tokens of each position (default 64)")
    add(
        "--samples-per-part",
        type=positive_int,
        default=256,
        metavar="N",
        help="samples in a file, which is written at once (default 256)",
    )
    add("--dtype", choices=["float32", "bfloat16"], help="default: float32 on CPU, else bfloat16")
    add(
        "--fsdp",
        type=positive_int,
        default=1,
        metavar="N",
        help="devices that share one copy of the weights (default 1)",
    )
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
