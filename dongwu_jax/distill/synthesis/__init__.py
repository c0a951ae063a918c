"""Synthetic text: a stronger model continues documents, or answers from them."""
