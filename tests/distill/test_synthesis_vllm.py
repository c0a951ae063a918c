"""The command with vLLM itself, killed on the way.

vLLM wants an environment of its own; the variable VLLM_PYTHON names its interpreter.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from json_lines import write_texts
from processes import all_gone, wait_until
from reference_models import random_llama, save
from synthesis_runs import ROOT, TOOL, document, files, records, save_model


@pytest.mark.slow
def test_samples_of_a_killed_job_are_those_of_an_undisturbed_one(tmp_path: Path) -> None:
    python = os.environ.get("VLLM_PYTHON")
    if python is None:
        pytest.skip("needs vLLM: set VLLM_PYTHON to the interpreter of its environment")
    model = save_model(tmp_path / "model", chat_template=None)
    save(
        random_llama(
            vocab_size=300,
            hidden_size=128,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
        ),
        model,
    )
    corpus = write_texts(tmp_path / "corpus.jsonl", [document(n) for n in range(24)])

    def start(output: Path) -> subprocess.Popen[bytes]:
        flags = "--prefix-tokens 8:32 --max-new-tokens 96 --records-per-part 4"
        options = ("dtype=float32", "enforce_eager=true", "max_num_seqs=4", "max_model_len=256")
        command: list[str | Path] = [python, TOOL, "--model", model, "--input", corpus]
        command += ["--output", output]
        command += [*flags.split(), *(f"--engine-option={option}" for option in options)]
        paths = {"PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1"}
        return subprocess.Popen(command, env=os.environ | paths, stdout=sys.stderr)

    assert start(tmp_path / "whole").wait(timeout=600) == 0
    whole = records(tmp_path / "whole")
    assert len({sample["id"] for sample in whole}) == 24
    assert all(0 < sample["completion_tokens"] <= 96 for sample in whole)
    output = tmp_path / "killed"
    for parts in (1, 3):
        process = start(output)
        wait_until(
            lambda parts=parts: len(list(output.glob("part-*"))) >= parts, process, seconds=600
        )
        children = _descendants(process.pid)
        process.kill()
        process.wait()
        assert children
        wait_until(lambda children=children: all_gone(children))
    assert len(list(output.glob("part-*"))) < 6
    assert start(output).wait(timeout=600) == 0
    # Each sample's random draws are its own; the arithmetic of float32 on CPU is, too.
    assert files(output) == files(tmp_path / "whole")


def _descendants(process: int) -> list[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [process]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]
