"""Distillation: learning from a stronger model.

synthesis/ makes text with it, corpus/ makes a corpus of such text, `teacher_cache_job.py` writes
down what it predicts for text that is there. The first two import no JAX, so that they run in
vLLM's own environment.
"""
