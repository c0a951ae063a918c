"""FLOPs per token against the published figures of the three conventions."""

import pytest

from dongwu_jax.config import ModelConfig
from dongwu_jax.models.flops import flops_per_token, peak_tflops


def model(layers, hidden, heads, kv_heads, mlp):
    return ModelConfig(
        vocab_size=125_952,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
    )


@pytest.mark.parametrize(
    ("config", "length", "expected"),
    [
        (model(40, 5120, 40, 40, 13824), 4096, (89.43, 90.06, 85.03)),
        (model(72, 12288, 96, 96, 32768), 4096, (835.53, 835.53, 813.79)),
        (model(52, 7168, 56, 8, 20480), 4096, (188.62, 197.78, 188.62)),
        (model(80, 12288, 96, 8, 34816), 4096, (794.46, 830.70, 806.54)),
    ],
)
def test_gflops_per_token(config, length, expected):
    figures = [flops_per_token(config, length, name) / 1e9 for name in ("V1", "V2", "V3")]
    assert figures == pytest.approx(expected, abs=0.006)


def test_original_throughput_table_is_reproduced():
    """65B at 161 TFLOP/s, V1, length 2048: 0.2722 B tokens a day on eight GPUs."""
    per_token = flops_per_token(model(80, 8192, 64, 64, 21824), 2048, "V1")
    assert 161e12 * 8 * 86400 / per_token / 1e9 == pytest.approx(0.2722, abs=5e-5)


def test_peaks():
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989.4
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312.0
    assert peak_tflops("cpu") is None


def test_beneath_adapters_matrices_have_no_gradients():
    """A third less for all products with weights; attention keeps its three."""
    config = model(40, 5120, 40, 40, 13824)
    attention = 12 * 40 * 5120 * 4096
    whole = flops_per_token(config, 4096, "V2")
    frozen = flops_per_token(config, 4096, "V2", frozen=True)
    assert frozen - attention == pytest.approx(2 / 3 * (whole - attention))
