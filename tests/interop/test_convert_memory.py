"""Converting needs the memory of a few tensors, however many layers a model has."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_lines import TOOLS

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.hf_export import HuggingFaceTarget
from dongwu_jax.interop.targets import DTYPES
from dongwu_jax.interop.tensors import model_tensors

# Peak of this program alone; ru_maxrss would count the process that starts it, too.
_CHAIN = """
import json, runpy, sys
main = runpy.run_path(sys.argv[1], run_name="tool")["main"]
for command_line in json.loads(sys.argv[2]):
    main(command_line)
status = open("/proc/self/status").read()
print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
"""
_MIB = 2**20


def make_model(folder: Path, num_layers: int) -> int:
    """A bfloat16 model of 12 MiB a layer; returns its bytes."""
    config = ModelConfig(
        vocab_size=2048,
        hidden_size=768,
        intermediate_size=1792,
        num_layers=num_layers,
        num_heads=6,
    )
    shapes = {tensor.name: tensor.shape for tensor in model_tensors(config)}

    def read(name: str) -> np.ndarray:  # a head like the embedding would count as tied
        return np.full(shapes[name], name == "lm_head", DTYPES["bfloat16"])

    folder.mkdir()
    sizes: list[int] = []
    HuggingFaceTarget(config, "bfloat16").write(folder, read, sizes.append)
    return sum(sizes)


def peak_bytes(folder: Path, target: str, options: list[str]) -> int:
    """Of converting from Hugging Face and back, in one process."""
    there, back = folder / target, folder / f"{target}-hf"
    commands = [
        ["--from", str(folder / "hf"), "--to", str(there), "--to-format", target, *options],
        ["--from", str(there), "--to", str(back), "--to-format", "hf"],
    ]
    words = [sys.executable, "-c", _CHAIN, str(TOOLS / "convert.py"), json.dumps(commands)]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    same = (back / "model.safetensors").stat().st_size
    assert same == (folder / "hf" / "model.safetensors").stat().st_size
    return int(output.splitlines()[-1])


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path, int]:
    """Models of few and of many layers, and by how many bytes they differ."""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads the peak of memory as Linux gives it")
    few, many = tmp_path_factory.mktemp("few"), tmp_path_factory.mktemp("many")
    return few, many, make_model(many / "hf", 26) - make_model(few / "hf", 2)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("dongwu", []),
        ("meta", []),
        ("torch_dist", []),
        (
            "megatron",
            ["--target-tensor-parallel-size=2", "--target-pipeline-parallel-size=2"],
        ),
    ],
)
def test_memory_does_not_grow_with_layers(models, target, options):
    few, many, difference = models
    assert difference > 256 * _MIB
    growth = peak_bytes(many, target, options) - peak_bytes(few, target, options)
    assert growth < 64 * _MIB
