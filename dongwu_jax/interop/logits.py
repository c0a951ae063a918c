"""Logits of a stored model on given tokens in float32: through ours, and through transformers."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.hf_config import hugging_face_config
from dongwu_jax.interop.model_source import ModelSource
from dongwu_jax.interop.tensors import model_tensors
from dongwu_jax.models.attention import causal_attention
from dongwu_jax.models.parameters import Parameters, bind


def fixed_tokens(vocab_size: int, length: int = 64) -> np.ndarray:
    """int64 [2, length]: the same on every machine."""
    return np.random.default_rng(0).integers(0, vocab_size, (2, length))


def our_logits(config: ModelConfig, parameters: Parameters, tokens: np.ndarray) -> np.ndarray:
    """float32 [batch, length, vocab_size] of our model, with products in full float32."""

    @jax.jit
    def forward(parameters, tokens):  # type: ignore[no-untyped-def]
        llama = bind(config, parameters)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        attend = functools.partial(causal_attention, implementation="xla")
        hidden = llama.hidden_states(llama.embed(tokens), positions, attend)
        return llama.logits(hidden)[..., : config.vocab_size]

    with jax.default_matmul_precision("highest"):
        return np.asarray(forward(parameters, tokens.astype(np.int32)))


def has_transformers() -> bool:
    """Whether transformers and torch are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def transformers_logits(source: ModelSource, tokens: np.ndarray) -> np.ndarray:
    """float32 [batch, length, vocab_size] of transformers' Llama with the source's weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = source.config.model_copy(update={"padded_vocab_size": None})
    with torch.device("meta"):
        settings = hugging_face_config(config, "float32", {})
        model = LlamaForCausalLM(LlamaConfig(**settings))
    weights = {}
    for tensor in model_tensors(config):
        kept = tuple(slice(size) for size in tensor.shape)
        values = tensor.to_torch(source.read(tensor.name)[kept]).astype(np.float32)
        weights[tensor.hugging_face] = torch.from_numpy(np.ascontiguousarray(values))
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    if config.qkv_bias:  # there, one on the output belongs to it
        for layer in range(config.num_layers):
            weights[f"model.layers.{layer}.self_attn.o_proj.bias"] = torch.zeros(config.hidden_size)
    model.load_state_dict(weights, strict=True, assign=True)
    # Rotary frequencies are no weights: a model built without memory has none yet.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens)).logits.numpy()
