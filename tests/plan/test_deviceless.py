"""Compiling for GPUs that are not there, with JAX's CUDA plugin; for CPU devices without it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import yaml
from command_lines import exit_code, load_script

from dongwu_jax.config import parse_config
from dongwu_jax.errors import UserError
from dongwu_jax.plan import deviceless
from dongwu_jax.plan.__main__ import main
from dongwu_jax.plan.cluster import GPUS, find_gpu
from dongwu_jax.plan.cudnn_attention import workspace_bytes
from dongwu_jax.plan.expected import expected_totals
from dongwu_jax.plan.planning import compile_plan, sketch_plan

SMALL = {
    "model": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_layers": 4,
        "num_heads": 8,
        "num_kv_heads": 8,
        "max_position_embeddings": 2048,
    },
    "data": {"sequence_length": 2048},
    "training": {"global_batch_size": 16, "micro_batch_size": 1, "remat": "attention"},
}

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

needs_plugin = pytest.mark.skipif(
    not deviceless._plugin_installed(), reason="needs JAX's CUDA plugin (the extra `plan`)"
)


def _plan(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    capsys.readouterr()
    assert exit_code(main, "--config", path, "--backend", "cuda", "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


@needs_plugin
@pytest.mark.parametrize("gpu", list(GPUS))
def test_sixteen_gpus(gpu: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(tmp_path, capsys, "--devices", 16, "--gpu", gpu, "mesh.fsdp=8", "mesh.data=2")
    compiled = plan["compiled"]
    assert compiled["backend"] == "cuda"
    assert not compiled["complaints"]
    assert compiled["argument_bytes"] == pytest.approx(plan["memory_estimate"]["state"], rel=0.01)
    # A step so small is mostly logits, of which the closed form takes more to be there at once.
    assert compiled["peak_bytes"] == pytest.approx(plan["memory_estimate"]["total"], rel=0.5)
    dtypes = {(one["kind"], *one["axes"]): one["dtype"] for one in reversed(plan["collectives"])}
    assert dtypes["all-gather", "fsdp"] == "bf16"
    assert dtypes["reduce-scatter", "fsdp"] == "f32"


@needs_plugin
def test_sequence_parallelism_over_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = _plan(tmp_path, capsys, "--devices", 8, "mesh.tensor=4", "mesh.data=2")
    config = parse_config(SMALL | {"mesh": {"tensor": 4, "data": 2}}, "test")
    compiled = {
        (one["kind"], *one["axes"], one["dtype"]): one["wire_bytes"] for one in plan["collectives"]
    }
    for one in expected_totals(config, 8):
        if one.axes == ("tensor",) and one.wire_bytes > 2**20:
            assert one.wire_bytes == pytest.approx(compiled[one.kind, "tensor", "bf16"], rel=0.2)


@needs_plugin
@pytest.mark.parametrize(
    ("case", "measured_gib"),
    [("13b", 32.86), ("13b_32k_full", 35.60), ("13b_32k_vocab125696", 46.13)],
)
def test_the_peak_measured_on_one_h100(case: str, measured_gib: float) -> None:
    cases = load_script(BENCHMARKS / "train_cases.py").CASES
    plan = compile_plan(sketch_plan(cases[case].config(), find_gpu("h100"), 1), "cuda")
    assert plan.peak_bytes / 2**30 == pytest.approx(measured_gib, rel=0.01)


@needs_plugin
@pytest.mark.parametrize(("case", "gib"), [("13b_tensor_fsdp", 55.69), ("13b_pipe_virtual", 64.29)])
def test_the_peak_that_an_h200_compiled(
    case: str, gib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one H200 that stood for four, JAX 0.11.2: with that, the program is the same."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    config = load_script(BENCHMARKS / "multigpu_cases.py").cases(4)[case].config(4)
    plan = compile_plan(sketch_plan(config, find_gpu("h200"), 4), "cuda")
    same = jax.__version_info__[:2] == (0, 11)
    assert plan.peak_bytes / 2**30 == pytest.approx(gib, rel=0.001 if same else 0.05)


@pytest.mark.parametrize(
    ("call", "query_shape", "size"),
    [
        ("__cudnn$fmhaSoftmax", (8, 10, 4096, 128), 256),
        ("__cudnn$fmhaSoftmaxBackward", (8, 10, 4096, 128), 169_083_136),
        ("__cudnn$fmhaSoftmaxBackward", (1, 40, 4096, 128), 84_541_696),
    ],
)
def test_the_room_that_attention_wants_on_an_h200(
    call: str, query_shape: tuple[int, ...], size: int
) -> None:
    assert workspace_bytes(call, query_shape) == size


_DETERMINISTIC = """
import json, sys
from dongwu_jax.config import parse_config
from dongwu_jax.parallel.layout import make_sharding
from dongwu_jax.plan.cluster import find_gpu
from dongwu_jax.plan.compile_worker import lower_step
from dongwu_jax.plan.deviceless import target_devices
from dongwu_jax.training.deterministic_attention import ask_for_deterministic_attention

devices = int(sys.argv[1])
config = parse_config(json.load(sys.stdin), "test")
sharding = make_sharding(config, target_devices("cuda", find_gpu("h100"), devices))
lowered = lower_step(config, sharding, "gpu")
asked = ask_for_deterministic_attention(lowered)
calls = [line for line in lowered.compile().as_text().splitlines() if "fmhaSoftmaxBackward" in line]
forced = [call for call in calls if '"force_deterministic":true' in call.replace(" ", "")]
roomy = [call for call in calls if sys.argv[2] in call]
print(json.dumps([asked, len(calls), len(forced), len(roomy)]))
"""


@needs_plugin
@pytest.mark.parametrize("devices", [1, 4])
def test_every_layer_is_asked_for_deterministic_attention(devices: int) -> None:
    config = {**SMALL, "training": {**SMALL["training"], "deterministic": True}}
    room = f"u8[{workspace_bytes('__cudnn$fmhaSoftmaxBackward', (1, 8, 2048, 128))}]"
    process = subprocess.run(
        [sys.executable, "-c", _DETERMINISTIC, str(devices), room],
        input=json.dumps(config),
        env=deviceless.environment("cuda", devices),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    layers = SMALL["model"]["num_layers"]
    assert json.loads(process.stdout.splitlines()[-1]) == [layers] * 4


def test_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deviceless, "_plugin_installed", lambda: False)
    assert deviceless.choose_backend("auto") == "cpu"
    with pytest.raises(UserError, match="--backend cuda: JAX's CUDA plugin is not installed"):
        deviceless.choose_backend("cuda")
