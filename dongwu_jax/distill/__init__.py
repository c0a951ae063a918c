"""Distillation: learning from a stronger model.

What makes synthetic text imports no JAX, so that it runs in vLLM's own environment.
"""
