"""dongwu_jax: pre-train, fine-tune, compress, extend, distill and evaluate Llama models in JAX."""

__version__ = "0.1.0"
