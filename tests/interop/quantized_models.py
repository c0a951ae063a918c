"""Random models in folders of 8-bit weights, and the arrays that such a folder holds."""

from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.torch
import torch
from conversions import convert_to
from reference_models import random_llama, save

from dongwu_jax.interop.sources import open_source

KINDS = {
    "untied": {},
    "tied, grouped": {"tie_word_embeddings": True, "num_key_value_heads": 2},
    "biases": {"attention_bias": True, "num_key_value_heads": 1},
    "odd sizes": {
        "hidden_size": 33,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "intermediate_size": 57,
    },
}


def quantized_export(tmp_path, kind="untied", **options):
    """A random model, and its folder in 8 bits."""
    source = open_source(save(random_llama(**KINDS[kind]), tmp_path / "in"))
    return source, convert_to(source, tmp_path / "out", "hf", **options)


def load(path: Path) -> dict[str, np.ndarray]:
    """By way of torch: numpy has no float8 of its own."""
    dtypes = {torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn, torch.bfloat16: ml_dtypes.bfloat16}
    return {
        name: (
            tensor.view(torch.uint8).numpy().view(dtypes[tensor.dtype])
            if tensor.dtype in dtypes
            else tensor.numpy()
        )
        for name, tensor in safetensors.torch.load_file(path).items()
    }
