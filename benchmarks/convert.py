"""Memory and speed of tools/convert.py, compared with `cp` of the same bytes.

Example:
    python benchmarks/convert.py --sizes 0.1B 0.5B --cases hf-megatron megatron-hf

Each size is a random bfloat16 Llama in a Hugging Face folder; 0.5B and 2B differ in layers alone,
so that memory which grows with layers shows. Every case is a process of its own, and the fastest of
--runs counts, of `cp -r` of the case's source too. `bound_bytes` is 1 GiB + 3 x the largest tensor.
`start_seconds` are what the fastest process took before its work began, Python and imports;
`ratio` compares the whole process with cp, `ratio_without_start` leaves these seconds out.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dongwu_jax.command_line import run_command_line
from dongwu_jax.errors import UserError

_CONVERT = Path(__file__).resolve().parents[1] / "tools" / "convert.py"
_VOCAB_SIZE = 32000
_ITEMSIZE = 2  # bfloat16


@dataclass(frozen=True)
class Size:
    """A Llama to convert."""

    hidden_size: int
    intermediate_size: int
    num_layers: int

    @property
    def parameters(self) -> int:
        """Number of scalars."""
        block = 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return self.num_layers * block + norms + 2 * _VOCAB_SIZE * self.hidden_size

    @property
    def largest_tensor_bytes(self) -> int:
        """The embedding; all others are smaller."""
        return _VOCAB_SIZE * self.hidden_size * _ITEMSIZE


SIZES = {
    "0.1B": Size(1024, 2816, 4),
    "0.5B": Size(2048, 5632, 8),
    "2B": Size(2048, 5632, 36),
}
# What is written, from Hugging Face; each is then the source of the case back.
TARGETS = {
    "megatron": ["--target-tensor-parallel-size=2", "--target-pipeline-parallel-size=2"],
    "megatron_tp1": [],
    "torch_dist": [],
    "meta": [],
    "dongwu": [],
}
_FORMATS = {"megatron_tp1": "megatron"}  # others: the name itself
CASES = [case for name in TARGETS for case in (f"hf-{name}", f"{name}-hf")]


# Runs a tool as it is; its last line of output says how many seconds its work took.
_TIMED = """
import runpy, sys, time
main = runpy.run_path(sys.argv[1], run_name="tool")["main"]
began = time.perf_counter()
main(sys.argv[2:])
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Measured:
    """What a process took."""

    seconds: float
    peak_rss_bytes: int
    output: str


def main() -> None:
    """Measure every case and print one line of JSON for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of models (default all)"
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=CASES,
        default=CASES,
        metavar="CASE",
        help=f"what to convert to what (default all): {', '.join(CASES)}",
    )
    parser.add_argument("--runs", type=int, default=2, help="the best counts (default 2)")
    parser.add_argument(
        "--folder", type=Path, help="where the models lie meanwhile; default: temporary files"
    )
    arguments = parser.parse_args()
    for name in arguments.sizes:
        _check_room(arguments.folder, name)
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="convert-") as folder:
            _measure_size(Path(folder), name, arguments.cases, arguments.runs)


def _check_room(folder: Path | None, name: str) -> None:
    """A source, what is made of it, and what is made of that or a copy."""
    place = folder or Path(tempfile.gettempdir())
    needed = 3 * SIZES[name].parameters * _ITEMSIZE + 10**9
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"--sizes {name}: needs {needed / 1e9:.1f} GB in {place}, {free / 1e9:.1f} GB are "
            "free; choose another --folder"
        )


def _measure_size(folder: Path, name: str, cases: Sequence[str], runs: int) -> None:
    # In a process of its own: the memory of this one would count as that of its children.
    maker = multiprocessing.get_context("spawn").Process(
        target=_make_model, args=(folder / "hf", SIZES[name])
    )
    maker.start()
    maker.join()
    if maker.exitcode:
        raise UserError(f"the {name} model could not be made in {folder}")
    for target, options in TARGETS.items():
        there, back = f"hf-{target}", f"{target}-hf"
        if not {there, back} & set(cases):
            continue
        forward = [f"--to-format={_FORMATS.get(target, target)}", *options]
        legs = [
            (there, folder / "hf", folder / target, forward),
            (back, folder / target, folder / "back", ["--to-format=hf"]),
        ]
        for case, source, destination, flags in legs:
            if case in cases:
                _measure_case(case, name, source, destination, flags, runs)
            elif case == there:
                _run_convert("--from", str(source), "--to", str(destination), *flags)
        shutil.rmtree(folder / target)
        shutil.rmtree(folder / "back", ignore_errors=True)


def _measure_case(
    case: str,
    name: str,
    source: Path,
    target: Path,
    flags: Sequence[str],
    runs: int,
) -> None:
    copies, conversions = [], []
    for _ in range(runs):
        copies.append(_run(["cp", "-r", str(source), str(target)]))
        shutil.rmtree(target)
        conversions.append(_run_convert("--from", str(source), "--to", str(target), *flags))
        if len(conversions) < runs:
            shutil.rmtree(target)
    copy, conversion = _best(copies), _best(conversions)
    size = SIZES[name]
    num_bytes = size.parameters * _ITEMSIZE
    working_seconds = float(conversion.output.splitlines()[-1])
    result = {
        "case": case,
        "size": name,
        "parameters": size.parameters,
        "bytes": num_bytes,
        "largest_tensor_bytes": size.largest_tensor_bytes,
        "peak_rss_bytes": max(measured.peak_rss_bytes for measured in conversions),
        "bound_bytes": 2**30 + 3 * size.largest_tensor_bytes,
        "seconds": round(conversion.seconds, 2),
        "start_seconds": round(conversion.seconds - working_seconds, 2),
        "mb_per_second": round(num_bytes / conversion.seconds / 1e6),
        "cp_mb_per_second": round(num_bytes / copy.seconds / 1e6),
        "ratio": round(copy.seconds / conversion.seconds, 2),
        "ratio_without_start": round(copy.seconds / working_seconds, 2),
    }
    print(json.dumps(result), flush=True)


def _run_convert(*words: str) -> Measured:
    return _run([sys.executable, "-c", _TIMED, str(_CONVERT), *words])


def _run(command: Sequence[str]) -> Measured:
    """Run a command to its end, after what earlier ones wrote has reached the disk.

    Raises:
        UserError: it failed.
    """
    os.sync()
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
        if process.returncode:
            raise UserError(f"{' '.join(command)} failed:\n{said}")
    return Measured(seconds, usage.ru_maxrss * 1024, said)


def _best(runs: Sequence[Measured]) -> Measured:
    return min(runs, key=lambda measured: measured.seconds)


def _make_model(folder: Path, size: Size) -> None:
    """Write a random model, its values below 2 in magnitude, tensor by tensor."""
    import ml_dtypes
    import numpy as np

    from dongwu_jax.config import ModelConfig
    from dongwu_jax.interop.hf_export import HuggingFaceTarget
    from dongwu_jax.interop.tensors import model_tensors

    config = ModelConfig(
        vocab_size=_VOCAB_SIZE,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_layers=size.num_layers,
        num_heads=size.hidden_size // 128,
    )
    random = np.random.default_rng(0)
    tensors = {tensor.name: tensor for tensor in model_tensors(config)}

    def read(name: str) -> np.ndarray:
        shape = tensors[name].torch_shape
        bits = random.integers(0, 2**16, shape, np.uint16) & np.uint16(0xBFFF)
        return tensors[name].from_torch(bits.view(ml_dtypes.bfloat16))

    folder.mkdir()
    HuggingFaceTarget(config, "bfloat16").write(folder, read, lambda num_bytes: None)


if __name__ == "__main__":
    run_command_line(main)
