"""Models in and out of every format: a source gives tensors by our names, a target takes them."""
