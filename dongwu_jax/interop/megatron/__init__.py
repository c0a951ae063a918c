"""Megatron-LM's checkpoints: torch format of every generation and layout, and torch_dist."""
