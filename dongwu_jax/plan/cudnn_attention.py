"""cuDNN's attention in programs for GPUs that are not there: what a GPU would answer.

JAX asks a device whether it has such kernels, and XLA asks it how much room each wants for itself.
That room is small, but with it planned peaks are a GPU's own: 55.69 GiB, and 55.61 without.
"""

import types
from collections.abc import Sequence
from typing import Any

from jax._src.cudnn import fused_attention_stablehlo as attention
from jax._src.interpreters import mlir
from jax.extend.mlir import ir

from dongwu_jax.plan.cluster import Gpu
from dongwu_jax.training.deterministic_attention import BACKWARD_CALL

_CUDNN_VERSION = 91200
_CALL = "__cudnn$fmha"


def let_cudnn_attention_compile(gpu: Gpu) -> None:
    """Answer for the target what is asked of a device that is present, from now on."""

    def as_version(text: str) -> tuple[int, int]:
        major, minor = text.split(".")
        return int(major), int(minor)

    patched: Any = attention
    patched.cuda_versions = types.SimpleNamespace(cudnn_get_version=lambda: _CUDNN_VERSION)
    patched.check_compute_capability = lambda least: gpu.compute_capability >= as_version(least)
    patched.is_cuda_compute_capability_equal = lambda one: gpu.compute_capability == as_version(one)
    patched.mlir = _WithWorkspaces()


def workspace_bytes(call: str, query_shape: Sequence[int]) -> int:
    """The room that a kernel wants beside its results.

    Read from programs that an H200 compiled (cuDNN 9, heads of 128, as many key heads): the
    backward pass adds up the query's gradient in float32, beside a number a row.

    Args:
        call: the custom call's target.
        query_shape: [batch, heads, length, head_dim].
    """
    least = 256
    if not call.startswith(BACKWARD_CALL):
        return least
    batch, heads, length, head_dim = query_shape
    return least + 4 * batch * heads * length * (head_dim + 1)


class _WithWorkspaces:
    """JAX's module that makes operations, whose calls of cuDNN say what room they want."""

    def __getattr__(self, name: str) -> Any:
        return getattr(mlir, name)

    def custom_call(self, target: str, *, result_types: Sequence[ir.Type], **rest: Any) -> Any:
        """`mlir.custom_call`; the first result of attention is the output or query's gradient."""
        if target.startswith(_CALL):
            size = workspace_bytes(target, ir.RankedTensorType(result_types[0]).shape)
            room = ir.RankedTensorType.get((size,), ir.IntegerType.get_unsigned(8))
            result_types = [*result_types[:-1], room]
        return mlir.custom_call(target, result_types=result_types, **rest)
