"""A real model all the way: Hugging Face, Megatron with three tensor ranks, ours, and back."""

import pytest
from command_lines import exit_code, load_tool
from reference_models import smollm2_file

from dongwu_jax import generate

convert = load_tool("convert").main
PROMPTS = ["The yield curve inverted because", "def moving_average(prices):"]


def _generated(model, capsys) -> str:
    capsys.readouterr()
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    flags = ["--max-new-tokens", 24, "--temperature", 0, "--dtype", "float32"]
    assert not exit_code(generate.main, "--model", model, *prompts, *flags)
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_text_stays_the_same(tmp_path, capsys):
    """T=3 divides the 9 query and 3 key/value heads."""
    hf, megatron, ours, again = (tmp_path / name for name in ("hf", "megatron", "ours", "again"))
    for source, target, *flags in [
        (smollm2_file(), hf, "hf"),
        (hf, megatron, "megatron", "--target-tensor-parallel-size", 3),
        (megatron, ours, "dongwu", "--true-vocab-size", 49152),
        (ours, again, "hf"),
    ]:
        assert not exit_code(convert, "--from", source, "--to", target, "--to-format", *flags)
    assert (again / "model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()
    text = _generated(hf, capsys)
    assert len(text) > 100
    assert _generated(megatron, capsys) == text
    assert _generated(again, capsys) == text
