"""The converter's command lines: detection, layouts, dry run, structure, verify, old flags."""

import json
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from command_lines import exit_code, failure, load_tool
from reference_models import change_weights, random_llama, save, train_tiny_tokenizer

from dongwu_jax.interop.safetensors_files import read_safetensors
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
        vocab_size=512,
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


def test_weights_without_a_history_become_a_release(source, tmp_path):
    ours, megatron = tmp_path / "ours", tmp_path / "megatron"
    assert not exit_code(convert, "--from", source, "--to", ours, "--to-format", "dongwu")
    assert not exit_code(convert, "--from", ours, "--to", megatron, "--to-format", "megatron")
    assert (megatron / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert open_source(megatron).iteration is None


def test_dry_run_writes_nothing(source, tmp_path, capsys):
    common = ["--from", source, "--to", tmp_path / "out", "--to-format", "megatron"]
    assert not exit_code(convert, *common, "--target-tensor-parallel-size", 2, "--dry-run")
    printed = capsys.readouterr().out
    assert "mp_rank_01/model_optim_rng.pt: " in printed
    assert "nothing was written" in printed
    assert not list(tmp_path.iterdir())


def test_structure_of_source_and_target(source, tmp_path, capsys):
    assert not exit_code(convert, "--from", source, "--print-checkpoint-structure")
    assert "model.embed_tokens.weight: [512, 64]" in capsys.readouterr().out
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


def _changed(source: Path, folder: Path, change) -> Path:
    """A copy in another place with its first norm changed by `change`."""
    shutil.copytree(source, folder)
    change_weights(folder, change)
    return folder


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (0.0, -0.0, False),
        (np.nan, np.nan, True),
        (1.0, np.nan, False),
        (np.inf, np.inf, True),
    ],
)
def test_verify_compares_bits(source, tmp_path, first, second, same):
    folders = []
    for number, value in enumerate((first, second)):

        def change(tensors, value=value):
            tensors["model.norm.weight"][0] = value

        folders.append(_changed(source, tmp_path / str(number), change))
    assert (exit_code(convert, "verify", *folders) == 0) == same
    if same:
        assert exit_code(convert, "verify", *folders, "--logits") in (0, 1)  # no warning, no trace


def test_verify_does_not_depend_on_the_order(source, tmp_path):
    half, brain = tmp_path / "fp16", tmp_path / "bf16"
    common = ["--to-format", "hf", "--target-params-dtype"]
    assert not exit_code(convert, "--from", source, "--to", half, *common, "fp16")
    assert not exit_code(convert, "--from", half, "--to", brain, *common, "bf16")
    assert exit_code(convert, "verify", half, brain) == 0
    assert exit_code(convert, "verify", brain, half) == 0


def test_verify_tells_vocabularies_apart(source, tmp_path, capsys):
    smaller = tmp_path / "smaller"
    save(
        random_llama(
            num_hidden_layers=4,
            hidden_size=64,
            num_attention_heads=8,
            num_key_value_heads=4,
            intermediate_size=96,
            vocab_size=200,
        ),
        smaller,
    )
    assert exit_code(convert, "verify", source, smaller) == 1
    assert "setting differs: vocab_size: 512, 200" in capsys.readouterr().out


def test_mixed_dtypes_keep_every_value(source, tmp_path, capsys):
    """Also by way of Megatron, whose embedding is the bfloat16 tensor here."""

    def change(tensors):
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].astype(
            ml_dtypes.bfloat16
        )

    mixed = _changed(source, tmp_path / "mixed", change)
    out = tmp_path / "out"
    assert not exit_code(convert, "--from", mixed, "--to", out, "--to-format", "hf")
    assert "tensors are stored as bfloat16 and float32" in capsys.readouterr().out
    assert open_source(out).dtype == "float32"
    assert exit_code(convert, "verify", mixed, out) == 0


def test_tokens_that_end_a_text_travel(source, tmp_path):
    """Several of them, of which the tokenizer knows one."""
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    train_tiny_tokenizer(tmp_path).rename(copy / "tokenizer.model")
    settings = {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0, "temperature": 0.6}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    assert not exit_code(convert, "--from", copy, "--to", megatron, "--to-format", "megatron")
    assert not exit_code(convert, "--from", megatron, "--to", back, "--to-format", "hf")
    assert json.loads((back / "generation_config.json").read_text()) == settings
    config = json.loads((back / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == ([2, 7], 0)
    assert config["vocab_size"] == 512  # and not the padded one


def test_megatrons_flags_are_named(source, tmp_path, capsys):
    assert not exit_code(
        convert,
        *("--from", source, "--to", tmp_path / "out", "--to-format", "megatron"),
        *("--target-naming", "legacy", "--set", "rope_theta=500000"),
        *("--set", "rope_scaling_factor=4", "--set", "rms_norm_eps=3e-6"),
    )
    printed = capsys.readouterr().out
    assert "--norm-epsilon 3e-06" in printed
    assert "--rotary-base 500000 --rotary-seq-len-interpolation-factor 4" in printed
    assert "a Megatron of 2023 has no --rotary-base" in printed


def test_flags_without_effect_are_named(source, tmp_path, capsys):
    common = ["--from", source, "--to", tmp_path / "out", "--to-format", "torch_dist"]
    flags = ["--target-tensor-parallel-size", 4, "--hf-weights", "bin", "--dry-run"]
    assert not exit_code(convert, *common, *flags)
    printed = capsys.readouterr().out
    assert "--target-tensor-parallel-size has no effect on torch_dist" in printed
    assert "--hf-weights has no effect on torch_dist" in printed


def test_a_dry_run_sees_that_the_target_exists(source, tmp_path, capsys):
    (tmp_path / "letter.txt").touch()
    common = ["--from", source, "--to", tmp_path, "--to-format", "hf", "--dry-run"]
    assert exit_code(convert, *common) == 1
    assert "exists already" in capsys.readouterr().err


def test_overwriting_spares_what_is_no_model(source, tmp_path, capsys):
    target = Path(shutil.copytree(source, tmp_path / "target"))
    common = ["--from", source, "--to", target, "--to-format", "hf", "--overwrite"]
    assert not exit_code(convert, *common)
    (target / "notes.txt").write_text("mine")
    assert exit_code(convert, *common) == 1
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantize(source, tmp_path, capsys, kind):
    out = tmp_path / "out"
    common = ["--from", source, "--to", out, "--to-format", "hf", "--quantize", kind]
    common += ["--dtype", "bf16", "--max-shard-size", "60KB"]
    assert not exit_code(convert, *common, "--dry-run", "--print-checkpoint-structure")
    planned = capsys.readouterr().out
    assert not out.exists()
    assert "  model.layers.3.mlp.down_proj.weight: [64, 96]" in planned
    assert "  model.layers.3.mlp.down_proj.weight_scale: [64, 1]" in planned
    assert f"GB of {kind} and bfloat16; nothing was written" in planned
    sizes = re.findall(r"(model-\S+): \d+ tensors, ([\d.,]+) MB", planned)
    assert len(sizes) > 3
    assert not exit_code(convert, *common)
    assert f"wrote {out}: hf, {kind} and bfloat16" in capsys.readouterr().out
    for name, size in sizes:
        stored = read_safetensors(out / name).values()
        assert float(size) == round(sum(array.stop - array.start for array in stored) / 1e6, 1)
    assert not exit_code(convert, "--from", out, "--print-checkpoint-structure")
    described = capsys.readouterr().out
    assert f"{kind} (compressed-tensors), float32" in described
    assert "activations, which vLLM quantizes too, are not quantized here" in described
    assert "model.layers.3.mlp.down_proj.weight_scale: [64, 1]" in described
    assert exit_code(convert, "verify", source, out, "--tolerance", "0.05") == 0
    assert exit_code(convert, "verify", source, out) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to-format", "megatron"], "--quantize fp8 is for --to-format hf, and megatron"),
        (["--to-format", "hf", "--hf-weights", "bin"], "--quantize fp8 needs safetensors"),
    ],
)
def test_quantize_where_it_cannot_be(source, tmp_path, capsys, flags, message):
    common = ["--from", source, "--to", tmp_path / "out", "--quantize", "fp8", "--dry-run"]
    assert message in failure(capsys, convert, *common, *flags)
    assert not (tmp_path / "out").exists()


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
