"""Measure training on all GPUs of this host: 2, 4 or 8 of them.

    source tools/launch/environment.sh
    NCCL_NVLS_ENABLE=0 python benchmarks/multigpu.py speed [--only 13b_fsdp] [--xla NAME=VALUE]
    python benchmarks/multigpu.py numerics | checkpoint [--layers N] | recovery

`speed` runs every case of `multigpu_cases.py` in a process of its own, then PyTorch (FSDP2,
`fsdp_peer.py`) on the same model: TFLOP/s a GPU, share of the peak, GiB and seconds planned and
measured, the share of a step spent in exchanges and in nothing but exchanges; `weak_1` to `weak_N`
gives the scaling. `numerics` trains a small model for 20 steps in each layout and on one GPU.
`checkpoint` writes and reads the state of a model. `recovery` kills one process of a run and starts
it again. Prints JSON lines. `--rehearse` does all of it with tiny models on 8 virtual CPU devices,
without PyTorch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from multigpu_cases import cases
from multigpu_recovery import kill_and_recover
from plan_check import compare, gpus_here

from dongwu_jax.command_line import positive_int, run_command_line
from dongwu_jax.errors import UserError

_HERE = Path(__file__).parent
_PEAK_TFLOPS = 989.0  # H100 SXM, bfloat16, by its datasheet
_RECOVERY_STEPS = 300  # so many that fast GPUs are still at them when one process is killed
_REHEARSED_GPUS, _REHEARSED_RECOVERY = 8, (2, 30)


def main(command_line: list[str] | None = None) -> int:
    """Measure one of the four."""
    options = _parse(command_line)
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    count, kind = (_REHEARSED_GPUS, "virtual CPU device") if options.rehearse else gpus_here()
    print(json.dumps({"gpus": count, "gpu": kind}), flush=True)
    if options.what == "speed":
        _speed(options, count, kind)
        return 0
    if options.what == "numerics":
        return _child(options, count, "multigpu_numerics.py")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.what == "checkpoint":
            layers = ["--layers", str(options.layers)] if options.layers else []
            return _child(options, count, "multigpu_checkpoint.py", folder, *layers)
        processes, steps = _REHEARSED_RECOVERY if options.rehearse else (count, _RECOVERY_STEPS)
        found = kill_and_recover(Path(folder), processes, _environment(options, 1), steps)
    print(json.dumps(found), flush=True)
    return 0


def _child(options: argparse.Namespace, count: int, script: str, *arguments: str) -> int:
    """Another script's exit code; it prints for itself."""
    run = [sys.executable, str(_HERE / script), str(count), *arguments]
    run += ["--rehearse"] if options.rehearse else []
    return subprocess.run(run, env=os.environ | _environment(options, count)).returncode


def _environment(options: argparse.Namespace, devices: int) -> dict[str, str]:
    """Where a process finds its devices, of which it has so many when nothing but rehearsed."""
    if not options.rehearse:
        return {"JAX_PLATFORMS": "cuda"}
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def _parse(command_line: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        choices=("speed", "numerics", "checkpoint", "recovery"),
        help="to measure; each is described above",
    )
    parser.add_argument("--only", nargs="+", metavar="CASE", help="these cases of speed")
    parser.add_argument("--steps", type=positive_int, default=4, help="steps to time (4)")
    parser.add_argument("--without-peer", action="store_true", help="leave PyTorch out")
    parser.add_argument(
        "--xla",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of XLA's for our steps; repeatable",
    )
    parser.add_argument(
        "--layers",
        type=positive_int,
        metavar="N",
        help="of the model of checkpoint (as many as cards of 80 GB hold)",
    )
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    parser.add_argument("--rehearse", action="store_true", help="on virtual CPU devices")
    options = parser.parse_args(command_line)
    if options.layers and (options.what != "checkpoint" or options.rehearse):
        raise UserError("--layers: is for checkpoint, and not for a rehearsal")
    return options


def _speed(options: argparse.Namespace, count: int, kind: str) -> None:
    known = cases(count)
    for name in options.only or known:
        if name not in known:
            raise UserError(f"--only {name}: not among {', '.join(known)}")
        case, gpus = known[name], 1 if known[name].one_gpu else count
        config = case.config(count, options.rehearse)
        environment = _environment(options, gpus)
        found = compare(config, kind, gpus, options.steps, environment, options.xla)
        line = {"case": name, "gpus": gpus, "layers": config.model.num_layers} | found
        if "tflops" in found:
            line["mfu"] = round(found["tflops"] / _PEAK_TFLOPS, 3)
        peer = case.peer(count)
        if peer and not options.without_peer and not options.rehearse:
            line |= _peer(peer, count, options.steps, found)
        print(json.dumps(line), flush=True)


def _peer(shape: dict[str, int], count: int, steps: int, ours: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's step on the same tokens, and how much longer it takes than ours."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += [f"--nproc-per-node={count}", str(_HERE / "fsdp_peer.py")]
    child = subprocess.run(
        [*torchrun, json.dumps(shape), str(steps)], capture_output=True, text=True
    )
    if child.returncode:
        return {"peer_failed": child.stderr[-2000:]}
    found = json.loads(child.stdout.splitlines()[-1])
    if "seconds" in ours:
        found["ratio"] = found["peer_seconds"] / ours["seconds"]
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in found.items()
    }


if __name__ == "__main__":
    run_command_line(main)
