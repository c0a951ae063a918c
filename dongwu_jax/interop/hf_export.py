"""Writing a Hugging Face folder that transformers and vLLM load as it is."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.data.tokenizers import load_fitting_tokenizer
from dongwu_jax.interop.hf import HuggingFaceSource
from dongwu_jax.interop.hf_config import Json, hugging_face_config
from dongwu_jax.interop.hf_tokenizer import write_hugging_face_tokenizer
from dongwu_jax.interop.safetensors_files import StoredTensor, write_safetensors
from dongwu_jax.interop.tensors import Tensor, model_tensors
from dongwu_jax.models.rope import inverse_frequencies

DEFAULT_SHARD_BYTES = 5 * 10**9


def write_hugging_face(
    folder: Path,
    config: ModelConfig,
    read: Callable[[str], np.ndarray],
    dtype: str,
    tokenizer: Path | None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write config, weights and tokenizer into an existing empty folder, then check them.

    Padding rows of the vocabulary are left out.

    Args:
        read: one tensor by our name, in our layout.
        dtype: format to store, "float32", "bfloat16" or "float16".
        tokenizer: where the tokenizer lies; None: the folder gets none.
        progress: called with the bytes of each tensor that is written.

    Raises:
        UserError: the tokenizer is damaged, or larger than the model's vocabulary.
    """
    known = load_fitting_tokenizer(tokenizer, config.vocab_size) if tokenizer else None
    bos_id, eos_id = (known.bos_id, known.eos_id) if known else (None, None)
    exported = hugging_face_config(config, dtype, bos_id, eos_id)
    _write_json(folder / "config.json", exported)
    ids = {"bos_token_id": bos_id, "eos_token_id": eos_id}
    _write_json(folder / "generation_config.json", {"_from_model_config": True} | ids)
    if tokenizer is not None:
        write_hugging_face_tokenizer(tokenizer, folder, config.max_position_embeddings)
    tensors = _stored_tensors(config, read)
    for num_bytes in write_safetensors(folder, tensors, dtype, max_shard_bytes):
        progress(num_bytes)
    _check(folder, config)


def _stored_tensors(config: ModelConfig, read: Callable[[str], np.ndarray]) -> list[StoredTensor]:
    tensors = model_tensors(_without_padding(config))
    stored = [
        StoredTensor(t.hugging_face, t.torch_shape, functools.partial(_read_stored, t, read))
        for t in tensors
    ]
    if config.qkv_bias:  # Hugging Face's attention_bias means one on the output too
        zeros = functools.partial(np.zeros, config.hidden_size, np.float32)
        stored += [
            StoredTensor(f"model.layers.{n}.self_attn.o_proj.bias", (config.hidden_size,), zeros)
            for n in range(config.num_layers)
        ]
    return stored


def _read_stored(tensor: Tensor, read: Callable[[str], np.ndarray]) -> np.ndarray:
    kept = tuple(slice(size) for size in tensor.shape)
    return tensor.to_torch(read(tensor.name)[kept])


def _without_padding(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"padded_vocab_size": None})


def _check(folder: Path, config: ModelConfig) -> None:
    """Read the export back: every name and shape, and the frequencies of rotary positions."""
    written = HuggingFaceSource(folder)
    written.close()
    ours, theirs = inverse_frequencies(config), inverse_frequencies(written.config)
    if not np.allclose(ours, theirs, rtol=1e-6, atol=0):
        raise RuntimeError(f"{folder}: the exported rope settings are read as other frequencies")


def _write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
