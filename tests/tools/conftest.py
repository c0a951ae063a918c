"""A small corpus with its tokenizer, dataset and model, made once by the commands themselves; and
stand-ins for what launchers call."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_lines import exit_code, failure, load_tool
from json_lines import write_texts
from launchers import FAKE_SCONTROL, FAKE_SRUN, FAKE_SSH

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.hf_export import HuggingFaceTarget
from dongwu_jax.models.parameters import initial_parameters, named_parameters

LICENCE = Path(__file__).resolve().parents[2] / "LICENSE"
VOCAB_SIZE = 400


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one message of a command that must fail."""
    return partial(failure, capsys)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="session")
def corpus(place: Path) -> Path:
    """JSON lines, one paragraph of the licence each."""
    path = place / "corpus.jsonl"
    paragraphs = LICENCE.read_text("ascii").split("\n\n")
    write_texts(path, paragraphs)
    return path


def _train_tokenizer(corpus: Path, vocab_size: int) -> Path:
    output = corpus.parent / f"{vocab_size}.model"
    main = load_tool("train_tokenizer").main
    assert not exit_code(main, "--input", corpus, "--vocab-size", vocab_size, "--output", output)
    return output


@pytest.fixture(scope="session")
def tokenizer(corpus: Path) -> Path:
    return _train_tokenizer(corpus, VOCAB_SIZE)


@pytest.fixture(scope="session")
def large_tokenizer(corpus: Path) -> Path:
    """One with more tokens than the model."""
    return _train_tokenizer(corpus, VOCAB_SIZE + 100)


@pytest.fixture(scope="session")
def dataset(corpus: Path, tokenizer: Path) -> Path:
    """Prefix of the tokenised corpus."""
    prefix = corpus.parent / "data"
    arguments = ["--tokenizer-type", "Llama2Tokenizer", "--tokenizer-model", tokenizer]
    main = load_tool("preprocess_data").main
    assert not exit_code(main, "--input", corpus, "--output-prefix", prefix, *arguments)
    return prefix.with_name("data_text_document")


@pytest.fixture(scope="session")
def model(place: Path, tokenizer: Path) -> Path:
    """A Hugging Face folder of a tiny model with random weights."""
    folder = place / "model"
    folder.mkdir()
    config = ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_layers=1,
        num_heads=4,
        max_position_embeddings=64,
    )
    weights = named_parameters(initial_parameters(config, seed=0))
    target = HuggingFaceTarget(config, "float32", tokenizer)
    target.write(folder, lambda name: np.asarray(weights[name]), progress=lambda num_bytes: None)
    return folder


@pytest.fixture(scope="session")
def checkpoint(model: Path) -> Path:
    """The same model as a checkpoint of ours."""
    target = model.with_name("checkpoint")
    main = load_tool("convert").main
    assert not exit_code(main, "--from", model, "--to", target, "--to-format", "dongwu")
    return target


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a launch, with the stand-ins first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("ssh", FAKE_SSH), ("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path
