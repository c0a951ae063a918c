"""From text to batches: tokenizers, indexed datasets, sample orders, packing."""
