"""Round trips between formats, and that a target is whole or absent."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from conversions import convert_to
from reference_models import (
    TOKENIZER_VOCAB,
    logits_of,
    random_llama,
    random_tokens,
    save,
    save_with_tokenizer,
    transformers_logits,
)

from dongwu_jax.errors import UserError
from dongwu_jax.interop.atomic_folder import new_folder
from dongwu_jax.interop.sources import open_source

TOOL = Path(__file__).parents[2] / "tools/convert.py"


def _convert(*arguments):
    runpy.run_path(str(TOOL))["main"]([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    model = random_llama(vocab_size=TOKENIZER_VOCAB, num_key_value_heads=2)
    return model, save_with_tokenizer(model, folder)


def test_hf_to_checkpoint_to_hf_keeps_every_bit(original, tmp_path):
    model, folder = original
    checkpoint, exported = tmp_path / "checkpoint", tmp_path / "exported"
    _convert("--from", folder, "--to", checkpoint, "--to-format", "dongwu")
    source = open_source(checkpoint)
    assert source.format == "dongwu"
    tokens = random_tokens(TOKENIZER_VOCAB)
    ours = logits_of(source, tokens)
    assert np.abs(ours - transformers_logits(model, tokens)).max() < 1e-4
    _convert("--from", checkpoint, "--to", exported, "--to-format", "hf")
    again = open_source(exported)
    assert again.config == open_source(folder).config
    for name in again.names():
        assert np.array_equal(again.read(name), open_source(folder).read(name))
    sentencepiece = (folder / "tokenizer.model").read_bytes()
    assert (exported / "tokenizer.model").read_bytes() == sentencepiece
    config = json.loads((exported / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert config["dtype"] == "float32"


def test_existing_targets_are_kept(original, tmp_path):
    _, folder = original
    target = tmp_path / "target"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    source = open_source(folder)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=str(target)):
            convert_to(source, target, "hf", overwrite=overwrite)
    assert [file.name for file in target.iterdir()] == ["notes.txt"]
    (target / "notes.txt").unlink()
    convert_to(source, target, "hf", dtype="float16")
    with pytest.raises(UserError, match="--overwrite"):
        convert_to(source, target, "hf")
    convert_to(source, target, "hf", overwrite=True)
    assert open_source(target).dtype == "float32"
    with pytest.raises(UserError, match="holds --from"):
        _convert("--from", folder, "--to", folder.parent, "--to-format", "hf", "--overwrite")


def test_a_failed_conversion_leaves_nothing_new(original, tmp_path):
    _, folder = original
    target = tmp_path / "target"
    convert_to(open_source(folder), target, "hf")
    before = {file.name: file.read_bytes() for file in target.iterdir()}

    written = []

    def fail(num_bytes):
        written.append(num_bytes)
        if len(written) % 6 == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_to(open_source(folder), target, "hf", "float16", overwrite=True, progress=fail)
    with pytest.raises(KeyboardInterrupt):
        convert_to(open_source(folder), tmp_path / "other", "hf", progress=fail)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]


def test_a_failed_rename_restores_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename

    def failing(self, destination):
        if self.parent != tmp_path and Path(destination) == target and not (self / "old").exists():
            raise OSError("disk trouble")
        return rename(self, destination)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match="disk trouble"), new_folder(target, overwrite=True):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]
    assert (target / "old").exists()


@pytest.mark.parametrize("size", ["5XB", "0", "-1GB"])
def test_impossible_shard_sizes_are_explained(original, tmp_path, size, capsys):
    common = ["--from", original[1], "--to", tmp_path / "out", "--to-format", "hf"]
    with pytest.raises(SystemExit, match="2"):
        _convert(*common, f"--max-shard-size={size}")
    assert f"--max-shard-size: '{size}' is not a size such as 500MB" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_checkpoints_keep_the_dtype(original, tmp_path, dtype):
    stored = convert_to(open_source(original[1]), tmp_path / "stored", "hf", dtype)
    checkpoint = convert_to(open_source(stored), tmp_path / "checkpoint", "dongwu")
    assert open_source(checkpoint).dtype == dtype
    again = convert_to(open_source(checkpoint), tmp_path / "again", "hf")
    name = "model.safetensors"
    assert (again / name).read_bytes() == (stored / name).read_bytes()


def test_values_too_large_for_float16_are_refused(original, tmp_path):
    model, _ = original
    source = open_source(save(model, tmp_path / "large"))
    read = source.read
    source.read = lambda name: read(name) * 1e9
    with pytest.raises(UserError, match="too large for float16"):
        convert_to(source, tmp_path / "out", "hf", "float16")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(original, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="the disk has 0.00 GB free"):
        convert_to(open_source(original[1]), tmp_path / "out", "hf")
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_conversion_are_removed(original, tmp_path):
    """A temporary folder goes when its process is gone, and stays while somebody holds its lock."""
    with new_folder(tmp_path / "out", overwrite=False):
        (running,) = tmp_path.iterdir()
        abandoned = tmp_path / ".out.abandoned"
        abandoned.mkdir()
        (abandoned / "lock").touch()
        convert_to(open_source(original[1]), tmp_path / "out", "hf")
        assert {entry.name for entry in tmp_path.iterdir()} == {"out", running.name}
        shutil.rmtree(tmp_path / "out")


def test_a_folder_with_only_a_config_is_not_overwritten(original, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="something else than one model"):
        convert_to(open_source(original[1]), tmp_path, "hf", overwrite=True)
    assert (tmp_path / "config.json").read_text() == "{}"
