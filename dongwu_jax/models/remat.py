"""What the backward pass keeps and what it computes again, by name.

The names are given where the values are made: "attention" inside the attention VJP, "block_input",
"qkv", "attention_output" and "gate_up" in `llama.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params, subjaxprs

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
        policy: "none" (keep everything), "minimal", "qkv_attention", "attention", "full", or
            "offload": what "attention" keeps, in the host's memory.
        inside_scan: a scan already keeps the compiler from merging forward and recomputation.
    """
    if policy == "offload":
        keep = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["block_input", *_SAVED_NAMES["attention"]],
            offload_src="device",
            offload_dst="pinned_host",
        )
    elif policy != "none":
        keep = jax.checkpoint_policies.save_only_these_names(*_SAVED_NAMES[policy])
    elif joins_weights():  # joined weights are never kept: the backward pass joins them again
        keep = _anything_but_joined_weights
    else:
        return block
    return jax.checkpoint(block, policy=keep, prevent_cse=not inside_scan)


def _anything_but_joined_weights(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """A checkpoint policy. It is asked about the join itself, and about its named result."""
    joins = any("all_gather" in _primitives(inner) for inner in jaxprs_in_params(parameters))
    return not joins and parameters.get("name") != GATHERED


def _primitives(jaxpr: Any) -> set[str]:
    """Names of all primitives in a jaxpr and in those inside it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    names = {equation.primitive.name for equation in jaxpr.eqns}
    return names.union(*(_primitives(inner) for inner in subjaxprs(jaxpr)))
