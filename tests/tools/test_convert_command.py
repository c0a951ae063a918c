"""The converter's command lines: detection, layouts, dry run, structure, verify, old flags."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_lines import exit_code, load_tool
from reference_models import random_llama, save

from dongwu_jax.interop.sources import open_source

convert = load_tool("convert").main
util = load_tool("checkpoint/util").main
llama_conversion = load_tool("checkpoint_conversion/llama_checkpoint_conversion").main


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    model = random_llama(
        num_hidden_layers=4,
        hidden_size=64,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=96,
        vocab_size=256,
    )
    return save(model, tmp_path_factory.mktemp("source"))


def _same_weights(first: Path, second: Path) -> None:
    ours, theirs = open_source(first), open_source(second)
    for name in ours.names():
        kept = tuple(slice(size) for size in ours.read(name).shape)
        assert np.array_equal(ours.read(name), theirs.read(name)[kept]), name


@pytest.mark.parametrize(
    ("target", "flags", "found"),
    [
        ("megatron", ["--target-tensor-parallel-size", 2], "Megatron"),
        (
            "megatron",
            [
                *("--target-naming", "legacy", "--target-pipeline-parallel-size", 2),
                *("--target-virtual-pipeline-parallel-size", 2),
            ],
            "legacy",
        ),
        ("torch_dist", [], "torch_dist"),
        ("meta", ["--target-tensor-parallel-size", 2], "Meta"),
        ("dongwu", [], "dongwu"),
        ("hf", ["--hf-weights", "bin", "--max-shard-size", "100KB"], "Hugging Face"),
    ],
)
def test_there_and_back(source, tmp_path, capsys, target, flags, found):
    there, back = tmp_path / "there", tmp_path / "back"
    vocab = ["--make-vocab-size-divisible-by", 1]
    common = ["--from", source, "--to", there, "--to-format", target]
    assert not exit_code(convert, *common, *flags, *vocab)
    capsys.readouterr()
    assert not exit_code(convert, "--from", there, "--to", back, "--to-format", "hf")
    printed = capsys.readouterr().out
    assert f"{there}: " in printed
    assert found in printed.splitlines()[0]
    name = "model.safetensors"
    assert (back / name).stat().st_size > 100_000
    _same_weights(source, back)
    assert not exit_code(convert, "verify", source, there, "--logits")
    assert "the models are the same" in capsys.readouterr().out


def test_dry_run_writes_nothing(source, tmp_path, capsys):
    common = ["--from", source, "--to", tmp_path / "out", "--to-format", "megatron"]
    assert not exit_code(convert, *common, "--target-tensor-parallel-size", 2, "--dry-run")
    printed = capsys.readouterr().out
    assert "mp_rank_01/model_optim_rng.pt: " in printed
    assert "nothing was written" in printed
    assert not list(tmp_path.iterdir())


def test_structure_of_source_and_target(source, tmp_path, capsys):
    assert not exit_code(convert, "--from", source, "--print-checkpoint-structure")
    assert "model.embed_tokens.weight: [256, 64]" in capsys.readouterr().out
    common = ["--from", source, "--to", tmp_path / "out", "--to-format", "megatron"]
    flags = ["--target-naming", "legacy", "--print-checkpoint-structure", "--dry-run"]
    assert not exit_code(convert, *common, *flags)
    lines = capsys.readouterr().out.splitlines()
    depth = {line.strip(): len(line) - len(line.lstrip()) for line in lines}
    assert depth["encoder"] > depth["language_model"]
    assert "layers.3.self_attention.dense.weight: [64, 64]" in depth


def test_verify_tells_where_models_differ(source, tmp_path, capsys):
    convert(["--from", str(source), "--to", str(tmp_path / "copy"), "--to-format", "hf"])
    file = tmp_path / "copy" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 64  # within the last tensor
    file.write_bytes(content)
    assert exit_code(convert, "verify", source, tmp_path / "copy") == 1
    printed = capsys.readouterr().out
    assert "the models DIFFER" in printed
    assert "0 of 1" in printed
    config = json.loads((source / "config.json").read_text())
    theta = config["rope_parameters"]["rope_theta"]
    assert exit_code(convert, "verify", source, source, "--set", f"rope_theta={theta}") == 0


def test_verify_rounds_to_the_coarser_dtype(source, tmp_path, capsys):
    for dtype in ("bf16", "fp16"):
        target = tmp_path / dtype
        common = ["--from", source, "--to", target, "--to-format", "hf"]
        assert not exit_code(convert, *common, "--target-params-dtype", dtype)
        assert not exit_code(convert, "verify", source, target)
    assert exit_code(convert, "verify", tmp_path / "bf16", tmp_path / "fp16") == 1


def test_the_flags_of_util(source, tmp_path, capsys):
    tp4, tp2 = tmp_path / "tp4", tmp_path / "tp2"
    assert not exit_code(
        util,
        *("--model-type", "GPT", "--loader", "llama2_hf", "--saver", "megatron"),
        *("--load-dir", source, "--save-dir", tp4, "--target-tensor-parallel-size", 4),
        *("--megatron-path", "/opt/megatron", "--max-queue-size", 10),
    )
    assert "--megatron-path has no effect here" in capsys.readouterr().out
    assert (tp4 / "latest_checkpointed_iteration.txt").read_text().strip() == "1"
    assert len(list((tp4 / "iter_0000001").glob("mp_rank_0[0-3]/model_optim_rng.pt"))) == 4
    assert not exit_code(
        util,
        *("--model-type", "GPT", "--load-dir", tp4, "--save-dir", tp2),
        *("--target-tensor-parallel-size", 2, "--target-pipeline-parallel-size", 2),
    )
    assert len(list((tp2 / "iter_0000001").glob("mp_rank_0[01]_00[01]"))) == 4
    _same_weights(source, tp2)
    kept = tmp_path / "kept"
    assert not exit_code(util, "--model-type", "GPT", "--load-dir", tp2, "--save-dir", kept)
    assert len(list((kept / "iter_0000001").glob("mp_rank_0[01]_00[01]"))) == 4


def test_util_refuses_another_loader(source, tmp_path, capsys):
    arguments = ["--model-type", "GPT", "--load-dir", source, "--save-dir", tmp_path / "out"]
    assert exit_code(util, *arguments, "--loader", "megatron") == 1
    assert "--loader megatron" in capsys.readouterr().err


def test_the_flags_of_llama_checkpoint_conversion(source, tmp_path, capsys):
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    assert not exit_code(
        llama_conversion,
        *("--load_path", source, "--save_path", megatron, "--make_vocab_size_divisible_by", 1),
        *("--target_tensor_model_parallel_size", 2, "--target_pipeline_model_parallel_size", 2),
    )
    assert not exit_code(
        llama_conversion,
        "--convert_checkpoint_from_megatron_to_transformers",
        *("--load_path", megatron, "--save_path", back, "--megatron-path", "/opt/megatron"),
        *("--target_params_dtype", "bf16", "--print-checkpoint-structure"),
    )
    printed = capsys.readouterr().out
    assert "model.layers.3.mlp.down_proj.weight: [64, 96]" in printed
    assert "--megatron-path has no effect here" in printed
    assert open_source(back).dtype == "bfloat16"
    assert exit_code(convert, "verify", source, back) == 0
