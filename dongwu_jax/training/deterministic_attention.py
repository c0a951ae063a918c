"""cuDNN's attention in programs that must always give the same bits."""

import json

import jax
from jax.extend.mlir import ir

BACKWARD_CALL = "__cudnn$fmhaSoftmaxBackward"


def ask_for_deterministic_attention(lowered: jax.stages.Lowered) -> int:
    """Have every backward pass of cuDNN's attention add up in a fixed order; changes `lowered`.

    XLA's option does so, too, but its cuDNN compiler says it to the first of several equal calls
    only, and then finds no kernel for the others (jaxlib 0.11.2, cudnn_custom_call_compiler.cc:
    `IndexError: raw_hash_map<>::at` in the first step).

    Returns:
        How many calls there are.
    """
    calls = 0

    def ask(operation: ir.Operation) -> ir.WalkResult:
        nonlocal calls
        if operation.name == "stablehlo.custom_call":
            target = ir.StringAttr(operation.attributes["call_target_name"]).value
            if target.startswith(BACKWARD_CALL):
                _force(operation)
                calls += 1
        return ir.WalkResult.ADVANCE

    module = lowered.compiler_ir("stablehlo")
    assert isinstance(module, ir.Module)  # what it is compiled from, not a copy
    module.operation.walk(ask)
    return calls


def _force(operation: ir.Operation) -> None:
    config = json.loads(ir.StringAttr(operation.attributes["backend_config"]).value)
    config["cudnn_fmha_backend_config"]["force_deterministic"] = True
    text = json.dumps(config)
    operation.attributes["backend_config"] = ir.StringAttr.get(text, operation.context)
