"""Floating-point operations of a training step, in the three conventions in circulation.

All count forward and backward (three times the forward pass), a multiply-add as two, the head but
not the embedding lookup, and never recomputation. They are those of Megatron-LM: V1 of 2023
(assumes an ungated 4h feed-forward or its gated equivalent), V2 of 2024 (the true feed-forward and
head sizes, full attention), V3 of 2025 (causal attention counted once).
"""

from dongwu_jax.config import ModelConfig

# Dense bfloat16 peak in TFLOP/s by a part of the device's name; the first match counts.
_PEAK_TFLOPS = {
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H20": 148.0,
    "H800": 989.4,
    "A100": 312.0,
    "A800": 312.0,
    "B200": 2250.0,
    "L40S": 362.0,
}


def flops_per_token(
    config: ModelConfig, sequence_length: int, convention: str, frozen: bool = False
) -> float:
    """FLOPs of training on one token of a full sequence.

    Args:
        convention: "V1", "V2" or "V3".
        frozen: whether the model's matrices have no gradients, as beneath adapters; the adapters
            themselves are not counted.
    """
    whole = _whole_training(config, sequence_length, convention)
    return whole - 2 * _matrix_weights(config) if frozen else whole


def _matrix_weights(config: ModelConfig) -> int:
    """Weights that multiply every token."""
    width, head_dim = config.hidden_size, config.width_per_head
    attention = width * head_dim * (2 * config.num_heads + 2 * config.kv_heads)
    block = attention + 3 * width * config.intermediate_size
    return config.num_layers * block + width * config.vocab_rows


def _whole_training(config: ModelConfig, sequence_length: int, convention: str) -> float:
    layers, width, vocab = config.num_layers, config.hidden_size, config.vocab_rows
    heads, kv_heads, head_dim = config.num_heads, config.kv_heads, config.width_per_head
    mlp = config.intermediate_size
    if convention == "V1":
        return (
            60 * layers * width**2 * (1 + kv_heads / (5 * heads) + sequence_length / (5 * width))
            + 6 * vocab * width
        )
    projections = 6 * layers * width * head_dim * (2 * heads + 2 * kv_heads)
    attention = 12.0 * layers * heads * head_dim * sequence_length
    if convention == "V3":
        attention /= 2
    return projections + attention + 18 * layers * width * mlp + 6 * width * vocab


def peak_tflops(device_kind: str) -> float | None:
    """Dense bfloat16 peak of a device in TFLOP/s, or None when it is not in the table."""
    for name, peak in _PEAK_TFLOPS.items():
        if name in device_kind:
            return peak
    return None
