"""What the backward pass keeps and what it computes again, by name.

The names are given where the values are made: "attention" inside the attention VJP,
"qkv", "attention_output" and "gate_up" in `llama.py`.
"""

from collections.abc import Callable

import jax

from dongwu_jax.parallel.weights import GATHERED, joins_weights

_SAVED_NAMES: dict[str, tuple[str, ...]] = {
    "full": (),
    "attention": ("attention",),
    "qkv_attention": ("attention", "qkv"),
    "minimal": ("attention", "qkv", "attention_output", "gate_up"),
}


def rematerialize(block: Callable, policy: str, inside_scan: bool) -> Callable:
    """Wrap a block's function so that its backward pass keeps only what `policy` names.

    Args:
        policy: "none" (keep everything), "minimal", "qkv_attention", "attention" or "full".
        inside_scan: a scan already keeps the compiler from merging forward and recomputation.
    """
    policies = jax.checkpoint_policies
    if policy != "none":
        keep = policies.save_only_these_names(*_SAVED_NAMES[policy])
    elif joins_weights():  # joined weights are never kept: the backward pass joins them again
        keep = policies.save_anything_except_these_names(GATHERED)
    else:
        return block
    return jax.checkpoint(block, policy=keep, prevent_cse=not inside_scan)
