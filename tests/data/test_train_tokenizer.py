"""Training a tokenizer, and the command that does it."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from json_lines import write_texts

from dongwu_jax.data.segment_encoder import SegmentEncoder
from dongwu_jax.data.tokenizer_training import _sample, train_sentencepiece
from dongwu_jax.data.tokenizers import SentencePieceTokenizer
from dongwu_jax.errors import UserError

_TOOL = Path(__file__).parents[2] / "tools" / "train_tokenizer.py"
_TEXTS = [str(argparse.__doc__), "公司上半年营业收入同比增长12.5%。" * 3, "x" * 9000]


def test_command_trains_a_tokenizer_of_llamas_kind(tmp_path: Path) -> None:
    corpus = tmp_path / "a.jsonl"
    write_texts(corpus, _TEXTS)
    command = [sys.executable, _TOOL, "--input", corpus, "--vocab-size", "400", "--output"]
    environment = {**os.environ, "PYTHONPATH": str(_TOOL.parents[1])}
    output = tmp_path / "new" / "tokenizer.model"
    subprocess.run([*command, output], env=environment, check=True, capture_output=True)
    tokenizer = SentencePieceTokenizer(output)
    assert [path.name for path in output.parent.iterdir()] == ["tokenizer.model"]
    assert tokenizer.vocab_size == 400
    assert (tokenizer.processor.unk_id(), tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.pad_id is None
    for text in (*_TEXTS, "  two  spaces\n\ttab", "😀 ﬁ １２"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    digits = [tokenizer.processor.id_to_piece(i) for i in tokenizer.encode("2024")]
    assert [piece.strip("\u2581") for piece in digits if piece != "\u2581"] == list("2024")
    assert SegmentEncoder.supports(tokenizer)
    again = subprocess.run([*command, output], env=environment, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith("error: ")
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (["a b a b"], 5000, r"vocab_size=5000: the corpus allows at most \d+ pieces"),
        (["abcdefg"], 262, r"already need \d+; raise it"),
        ([], 400, "has no text"),
        (["", " \n\0"], 400, "has no text"),
    ],
)
def test_what_cannot_be_trained(
    tmp_path: Path, texts: list[str], vocab_size: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_sentencepiece(texts, tmp_path / "a.model", vocab_size)
    assert list(tmp_path.iterdir()) == []


def test_the_sample_is_bounded_and_covers_the_corpus() -> None:
    texts = [f"{i:06}" for i in range(5000)]
    sample = _sample(texts, 6000, seed=0)
    assert len(sample) == 1000
    assert sample == sorted(sample)
    assert 2200 < sum(map(int, sample)) / 1000 < 2800
    assert sample != _sample(texts, 6000, seed=1)
