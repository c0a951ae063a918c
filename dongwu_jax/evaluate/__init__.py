"""What a model knows: perplexity, pass keys, lm-evaluation-harness, FinEval, comparisons."""
