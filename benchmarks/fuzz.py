"""Give every reader damaged and hostile inputs: each is to be read, or refused with one error.

Example:
    python benchmarks/fuzz.py --seed 0 --inputs 10000
    python benchmarks/fuzz.py --seed 0 --reader gguf --first 38 --inputs 1    (one of them again)

Prints a JSON line for each reader: inputs, how many were read and refused, and each failure with
what reproduces it. A failure is any other exception, a process that dies or hangs, an error that
names no file, too much memory or time, a command run, a connection, a file written or left over.
Workers have limits of memory and time. Exits with 1 if there was a failure.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dongwu_jax.command_line import positive_int, whole_number

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))


def main(command_line: list[str] | None = None) -> int:
    """Divide the inputs over the readers, and go through them."""
    from campaign import fuzz
    from readers import READERS
    from seeds import build_seeds

    options = _parse(command_line, list(READERS))
    readers = options.reader or list(READERS)
    each = -(-options.inputs // len(readers))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place)
        (folder / "seeds").mkdir()
        build_seeds(folder / "seeds")

        def run(reader: str) -> bool:
            job = (reader, options.first, each)
            found = fuzz([job], options.seed, folder / "seeds", folder / reader)[reader]
            print(json.dumps(dataclasses.asdict(found), ensure_ascii=False), flush=True)
            return not found.failures

        with ThreadPoolExecutor(options.workers) as pool:
            sound = list(pool.map(run, readers))
    return 0 if all(sound) else 1


def _parse(command_line: list[str] | None, readers: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="other seeds damage otherwise")
    parser.add_argument(
        "--inputs", type=positive_int, default=10_000, metavar="N", help="of all readers together"
    )
    parser.add_argument(
        "--reader",
        action="append",
        choices=readers,
        metavar="NAME",
        help=f"only this one; may be repeated: {', '.join(readers)}",
    )
    parser.add_argument(
        "--first",
        type=whole_number,
        default=0,
        metavar="INDEX",
        help="number of each reader's first input: go on where a run ended, or do one again",
    )
    parser.add_argument(
        "--workers", type=positive_int, default=2, metavar="N", help="processes at the same time"
    )
    return parser.parse_args(command_line)


if __name__ == "__main__":
    sys.exit(main())
