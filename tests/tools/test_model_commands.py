"""What a user sees of bad input to the commands that read models."""

import json
import shutil
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
from command_lines import cut_short, exit_code, load_tool

from dongwu_jax.generate import main as generate

convert = load_tool("convert").main
evaluate = load_tool("evaluate").main


@pytest.fixture
def copy(model, tmp_path):
    """A model folder that may be damaged."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def _write_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_no_model(refused, corpus, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    for path, expected in [
        (tmp_path / "gone", "no such file or folder"),
        (tmp_path / "folder", "is not a model: expected"),
        (tmp_path / "empty", "is not a model: expected"),
        (corpus, "is not a model: expected"),
    ]:
        for command in (
            (generate, "--prompt", "x", "--model", path),
            (evaluate, "perplexity", "--data", corpus, "--model", path),
            (convert, "--to", tmp_path / "to", "--to-format", "hf", "--from", path),
        ):
            assert f"{path}: {expected}" in refused(*command)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("model.safetensors", "is not a whole safetensors file"),
        ("config.json", "is not JSON"),
        ("tokenizer.json", "is not a Hugging Face tokenizer"),
        ("tokenizer_config.json", "is not JSON"),
    ],
)
def test_truncated_model_folder(refused, copy, tmp_path, file, expected):
    cut_short(copy / file)
    assert f"{copy / file}: {expected}" in refused(generate, "--model", copy, "--prompt", "x")
    to = tmp_path / "to"
    for target in ("hf", "dongwu"):
        message = refused(convert, "--from", copy, "--to", to, "--to-format", target)
        assert f"{copy / file}: {expected}" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_truncated_gguf(refused, tmp_path):
    path = _write_gguf(tmp_path / "model.gguf")
    assert f"{path}: " in refused(generate, "--model", path, "--prompt", "x")  # fields are missing
    whole = path.read_bytes()
    for size in (0, 3, 30, len(whole) // 2):
        path.write_bytes(whole[:size])
        message = refused(generate, "--model", path, "--prompt", "x")
        assert f"{path}: cannot be read as GGUF" in message


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("config/metadata", "/config/metadata: is not JSON"),
        ("parameters/final_norm/zarr.json", "/parameters/final_norm/zarr.json: is not JSON"),
        ("parameters/final_norm/c/*", ": is damaged or incomplete"),
    ],
)
def test_truncated_checkpoint(refused, checkpoint, tmp_path, pattern, expected):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    for path in (copy / "0").glob(pattern):
        cut_short(path)
    to = tmp_path / "to"
    message = refused(convert, "--from", copy, "--to", to, "--to-format", "hf")
    assert f"{copy / '0'}{expected}" in message
    assert not to.exists()


def test_tokenizer_of_another_model(refused, model, large_tokenizer, corpus, tmp_path):
    for command in (
        (generate, "--model", model, "--prompt", "x"),
        (evaluate, "perplexity", "--model", model, "--data", corpus),
        (convert, "--from", model, "--to", tmp_path / "to", "--to-format", "hf"),
        (convert, "--from", model, "--to", tmp_path / "to", "--to-format", "dongwu"),
    ):
        message = refused(*command, "--tokenizer", large_tokenizer)
        assert f"{large_tokenizer}: the tokenizer has 500 tokens" in message
        assert "vocab_size is 400" in message
        gone = tmp_path / "gone.model"
        assert f"{gone}: no such tokenizer" in refused(*command, "--tokenizer", gone)
    assert not list(tmp_path.iterdir())


def test_model_without_tokenizer(refused, copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    message = refused(generate, "--model", copy, "--prompt", "x")
    assert f"{copy}: has no tokenizer; name one with --tokenizer" in message


def test_convert_refuses_bad_targets(refused, model, corpus, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    for arguments, expected in [
        (["--to", corpus], f"{corpus}: exists already"),
        (["--to", tmp_path / "mine"], "exists already; choose another name, or pass --overwrite"),
        (["--to", tmp_path / "mine", "--overwrite"], "something else than one model"),
        (["--to", corpus / "below"], "cannot be written"),
        (["--to", model.parent], f"--to {model.parent} holds --from"),
    ]:
        assert expected in refused(convert, "--from", model, "--to-format", "hf", *arguments)
    to_megatron = ["--from", model, "--to", tmp_path / "a", "--to-format", "megatron"]
    message = refused(convert, *to_megatron, "--target-tensor-parallel-size", 3)
    assert "is not divisible by tensor_parallel=3" in message
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no prompt: use --prompt or --prompts-file"),
        (["--prompt", "x " * 100], "exceed the model's max_position_embeddings=64"),
        (["--prompt", "a\udc80"], "--prompt: is not UTF-8 at character 2"),
        (["--prompt", "x", "--temperature", "-1"], "temperature=-1.0: must be"),
        (["--prompt", "x", "--temperature", "nan"], "temperature=nan: must be"),
        (["--prompt", "x", "--top-p", "0"], "top_p=0.0: must be"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens=0: must be"),
        (["--prompt", "x", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--prompt", "x", "--seed", "-1"], "seed=-1: must be"),
        (["--prompt", "x", "--seed", str(2**70)], f"seed={2**70}: must be"),
    ],
)
def test_generate_refuses_bad_settings(refused, model, arguments, expected):
    assert expected in refused(generate, "--model", model, "--max-new-tokens", "3", *arguments)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file"),
        (b"", "no prompt"),
        (b"\xff\xfe", "is not UTF-8 at byte 0"),
        (b'{"prompt": "a"}\n{"prompt": 3}\n', "prompt 2 is not a line such as"),
        (b'{"prompt": "a"}\n{"text": "b"}\n', "prompt 2 is not a line such as"),
        (b"[1]\n", "prompt 1 is not a line such as"),
        (b'{"prompt": "\\ud800"}\n', "prompt 1 is not a line such as"),
    ],
)
def test_generate_refuses_bad_prompt_files(refused, model, tmp_path, content, expected):
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert expected in refused(generate, "--model", model, "--prompts-file", path)


def test_evaluate_refuses_bad_data(refused, model, dataset, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "bad.jsonl").write_text('{"text": \n')
    for ending in ("bin", "idx"):
        shutil.copy(f"{dataset}.{ending}", tmp_path / f"cut.{ending}")
    cut_short(tmp_path / "cut.bin")
    for data, expected in [
        (tmp_path / "gone", "no such file, and no indexed dataset"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.txt", "holds no text to predict"),
        (tmp_path / "empty.jsonl", "holds no text to predict"),
        (tmp_path / "latin.txt", "is not UTF-8 at byte 3"),
        (tmp_path / "bad.jsonl", "bad.jsonl:1: is not JSON"),
        (tmp_path / "cut", "cut.bin"),
        (f"{dataset}.bin", f"write the dataset without its ending: {dataset}"),
    ]:
        arguments = ("perplexity", "--model", model, "--lengths", 32, "--data", data)
        assert expected in refused(evaluate, *arguments)


def test_evaluate_refuses_tokens_of_another_tokenizer(refused, model, corpus, dataset, tmp_path):
    train_tokenizer, smaller = load_tool("train_tokenizer").main, tmp_path / "smaller.model"
    arguments = ("--input", corpus, "--vocab-size", 340, "--output", smaller)
    assert not exit_code(train_tokenizer, *arguments)
    arguments = ("perplexity", "--model", model, "--lengths", 32, "--data", dataset)
    assert "the tokenizer has 340" in refused(evaluate, *arguments, "--tokenizer", smaller)


def test_evaluate_refuses_bad_settings_before_it_measures(refused, model, corpus, tmp_path):
    run = partial(refused, evaluate, "perplexity", "--model", model, "--data", corpus)
    assert "--stride 17: must be from 1 to the shortest of --lengths, 16" in run(
        "--protocol", "sliding", "--lengths", "16,32", "--stride", "17"
    )
    assert "--protocol truncate: the text's longest document has" in run(
        "--protocol", "truncate", "--lengths", "4000"
    )
    assert f"{tmp_path}: is a folder" in run("--json", tmp_path)
    assert "cannot be written" in run("--json", corpus / "result.json")


def test_results_go_to_stdout_and_nothing_else(capsys, model, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    flags = ("--prompts-file", prompts, "--max-new-tokens", "2")
    assert not exit_code(generate, "--model", model, *flags)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["prompt"] for record in records] == ["one", "two"]
