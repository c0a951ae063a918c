"""How training programs are compiled: XLA's options, and what is kept for the next start."""

import logging
from dataclasses import dataclass
from pathlib import Path

import jax
import jaxlib

logger = logging.getLogger(__name__)

Version = tuple[int, ...]


@dataclass(frozen=True)
class XlaOption:
    """An option of XLA's GPU compiler that a measurement speaks for (docs/performance.md)."""

    name: str
    value: bool
    why: str
    since: Version = (0, 10)  # jaxlib
    where_copies_can_be_hidden: bool = True


GPU_OPTIONS = (
    XlaOption(
        "xla_gpu_enable_triton_gemm",
        False,
        "cuBLAS is faster than Triton's fused products: 2.6% of a step of 13B layers",
    ),
    XlaOption(
        "xla_gpu_experimental_enable_fusion_autotuner",
        False,
        "timing would decide the order of sums in fusions, and the schedule: a plan of 63 GiB "
        "took 72; the same speed",
    ),
    XlaOption(
        "xla_gpu_enable_dynamic_slice_fusion",
        False,
        "a product whose result is used and also kept by a loop over layers is computed twice",
        since=(0, 11),
    ),
    XlaOption(
        "xla_gpu_enable_latency_hiding_scheduler",
        False,
        "with nothing to hide it only puts off gradients of weights: 47 GiB for 36 at 32,768 "
        "tokens, and no faster",
        where_copies_can_be_hidden=False,
    ),
)


# Kernels whose sums do not depend on timing, and the same choice of kernels in every start.
# What it leaves out: deterministic_attention.py.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}


def compiler_options(
    platform: str,
    can_hide_copies: bool,
    version: Version | None = None,
    deterministic: bool = False,
) -> dict[str, bool]:
    """The options for `jax.jit`.

    Args:
        platform: of the devices; "cpu" needs none, and always gives the same bits.
        can_hide_copies: to other devices or the host, behind computation.
        version: of jaxlib; None: the installed one.
        deterministic: whether the programs must always give the same bits.
    """
    if platform == "cpu":
        return {}
    version = version or tuple(int(part) for part in jaxlib.__version__.split(".")[:2])
    chosen = {
        option.name: option.value
        for option in GPU_OPTIONS
        if option.since <= version and (option.where_copies_can_be_hidden or not can_hide_copies)
    }
    return chosen | DETERMINISTIC if deterministic else chosen


def keep_compiled_programs(folder: Path) -> None:
    """Let a restart find the compiled programs of this run, and the kernels XLA chose by timing.

    On GPUs; a folder that the user named to JAX is respected.
    """
    if jax.default_backend() != "gpu" or jax.config.values["jax_compilation_cache_dir"]:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    logger.info("compiled programs are kept in %s", folder)
