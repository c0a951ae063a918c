"""Compiling for GPUs that are not there: JAX's CUDA plugin needs only a description of the target.

Without the plugin, virtual CPU devices stand in: the same collectives, rough memory.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any, Literal

from dongwu_jax.errors import UserError
from dongwu_jax.plan.cluster import GPUS_PER_HOST, Gpu
from dongwu_jax.plan.memory import POOL_SHARE

Backend = Literal["cuda", "cpu"]

# Beyond the options that the training step itself is compiled with: no GPU to time kernels on, so
# no autotuning. XLA must not lower the memory itself.
_CUDA_FLAGS = (
    "--xla_gpu_autotune_level=0",
    "--xla_disable_hlo_passes=rematerialization",
)
# The CPU compiler would join weights once for all micro batches and for both passes, and keep them.
# The GPU's does not; without these passes both make the same collectives.
_CPU_FLAGS = ("--xla_disable_hlo_passes=while-loop-invariant-code-motion,cse_barrier_expander",)

_TARGETS = {
    (9, 0): """
        threads_per_block_limit: 1024 threads_per_warp: 32
        shared_memory_per_block: 49152 shared_memory_per_core: 233472
        shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
        core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98""",
    (8, 0): """
        threads_per_block_limit: 1024 threads_per_warp: 32
        shared_memory_per_block: 49152 shared_memory_per_core: 167936
        shared_memory_per_block_optin: 166912 threads_per_core_limit: 2048
        core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41""",
}


def choose_backend(requested: Literal["auto", "cuda", "cpu"]) -> Backend:
    """Resolve `--backend`: auto takes the CUDA plugin where it is installed.

    Raises:
        UserError: cuda was asked for and the plugin is missing.
    """
    if requested == "cpu":
        return "cpu"
    if _plugin_installed():
        return "cuda"
    if requested == "cuda":
        raise UserError(
            "--backend cuda: JAX's CUDA plugin is not installed; "
            "pip install 'dongwu_jax[plan]' (no GPU is needed), or use --backend cpu"
        )
    return "cpu"


def environment(backend: Backend, device_count: int) -> dict[str, str]:
    """The environment of a process that compiles; JAX reads it when it is imported."""
    flags = " ".join(_CUDA_FLAGS)
    if backend == "cpu":
        devices = f"--xla_force_host_platform_device_count={device_count}"
        flags = " ".join((devices, *_CPU_FLAGS))
    ours = {
        "JAX_PLATFORMS": "cpu",  # nothing runs: GPUs that may be here are left alone
        "XLA_FLAGS": flags,
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cached program has no complaints to tell
    }
    return {**os.environ, **ours}


def target_devices(backend: Backend, gpu: Gpu, device_count: int) -> Sequence[Any]:
    """The devices to compile for, in a process that was started in `environment`."""
    import jax

    if backend == "cpu":
        return jax.devices()
    from jax.experimental import topologies

    from dongwu_jax.plan.cudnn_attention import let_cudnn_attention_compile

    let_cudnn_attention_compile(gpu)
    hosts = -(-device_count // GPUS_PER_HOST)
    if hosts > 1 and device_count % GPUS_PER_HOST:
        raise UserError(
            f"--devices {device_count}: more than {GPUS_PER_HOST} GPUs must be whole hosts of "
            f"{GPUS_PER_HOST}"
        )
    return topologies.get_topology_desc(
        platform="cuda",
        target_config=_target_config(gpu),
        topology=f"1x{hosts}x{device_count // hosts}",
    ).devices


def _plugin_installed() -> bool:
    return any(
        importlib.util.find_spec(package) is not None
        for package in ("jax_cuda13_plugin", "jax_cuda12_plugin")
    )


def _target_config(gpu: Gpu) -> str:
    """XLA's GpuTargetConfigProto as text; its memory is JAX's pool, with which XLA schedules."""
    major, minor = gpu.compute_capability
    return f"""gpu_device_info {{ {_TARGETS[gpu.compute_capability]}
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        registers_per_core_limit: 65536 registers_per_block_limit: 65536
        device_memory_size: {int(POOL_SHARE * gpu.memory_bytes)}
        memory_bandwidth: {round(gpu.memory_bandwidth)} l2_cache_size: {gpu.l2_cache_bytes}
        cuda_compute_capability {{ major: {major} minor: {minor} }} }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }}
        runtime_version {{ major: 12 minor: 9 patch: 0 }}
        device_description_str: "{gpu.device_kind}" """
