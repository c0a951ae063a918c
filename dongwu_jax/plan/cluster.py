"""Figures of GPUs and their networks that a plan calculates with, and where each comes from."""

import functools
from dataclasses import dataclass

import numpy as np

from dongwu_jax.errors import UserError

GPUS_PER_HOST = 8

# The share of a link's nominal rate that large collectives reach. An assumption, not a measurement.
LINK_EFFICIENCY = 0.8


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU in hosts of eight.

    The rates of compute are what training steps reach with bfloat16, not the datasheet's. H100:
    fitted to layers of 13B on one card, 600 TFLOP/s by Megatron's V2 count (which has causal
    attention twice) at 4,096 tokens a sequence and 589 at 32,768 with all blocks recomputed, and to
    eight layouts of two cards (benchmarks/plan_check.py). H200: fitted to layers of 13B and 7B on
    one card, 618 and 617 TFLOP/s at 4,096 tokens, and of 13B at 32,768, 650 with all but attention
    recomputed. A100: that with which the plan of 31B (tensor 8, pipe 2) and 65B (tensor 8, pipe 4)
    on 32 cards comes to what Megatron reached there, 0.59 and 0.27 billion tokens a day on 8 cards,
    in another run than the shipped ones: all micro batches of a step in the pipeline, nothing
    recomputed. Attention has the same share of the peak as on H100.
    """

    key: str  # as the command line names it
    name: str
    device_kind: str  # as JAX names it
    memory_bytes: int
    peak_flops: float  # datasheet, dense bfloat16
    matmul_flops: float  # linear layers and head, element-wise work included
    attention_flops: float  # attention kernels, causal attention counted once
    memory_bandwidth: float  # bytes/s
    l2_cache_bytes: int
    link_bandwidth: float  # bytes/s a GPU sends to the others of its host, nominal
    network_bandwidth: float  # bytes/s a GPU sends to other hosts, nominal
    compute_capability: tuple[int, int]


GPUS = {
    "h100": Gpu(
        key="h100",
        name="H100 80 GB",
        device_kind="NVIDIA H100 80GB HBM3",
        memory_bytes=84_929_347_584,
        peak_flops=989.4e12,
        matmul_flops=595e12,
        attention_flops=553e12,
        memory_bandwidth=3.35232e12,
        l2_cache_bytes=50 << 20,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
        compute_capability=(9, 0),
    ),
    "h200": Gpu(
        key="h200",
        name="H200 141 GB",
        device_kind="NVIDIA H200",
        # nvidia-smi's 143,771 MiB less what the driver keeps of an H100, 564 MiB.
        memory_bytes=150_163_419_136,
        peak_flops=989.4e12,
        matmul_flops=618e12,
        attention_flops=483e12,
        memory_bandwidth=4.8e12,
        l2_cache_bytes=60 << 20,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
        compute_capability=(9, 0),
    ),
    "a100": Gpu(
        key="a100",
        name="A100 80 GB",
        device_kind="NVIDIA A100-SXM4-80GB",
        memory_bytes=84_929_347_584,
        peak_flops=312e12,
        matmul_flops=185e12,
        attention_flops=174e12,
        memory_bandwidth=2.039e12,
        l2_cache_bytes=40 << 20,
        link_bandwidth=300e9,
        network_bandwidth=25e9,
        compute_capability=(8, 0),
    ),
}


def find_gpu(name: str) -> Gpu:
    """The figures of a GPU by its short name.

    Raises:
        UserError: there are none.
    """
    if name.lower() not in GPUS:
        raise UserError(f"--gpu {name}: unknown GPU; choose {', '.join(GPUS)}")
    return GPUS[name.lower()]


@dataclass(frozen=True)
class Cluster:
    """How many GPUs, and what connects them."""

    gpu: Gpu
    mesh_shape: dict[str, int]  # axes from outermost to innermost, neighbours share a host
    network_bandwidth: float  # bytes/s a GPU sends to other hosts, nominal

    def members_per_host(self, axes: tuple[str, ...]) -> int:
        """How many members of a group along these mesh axes share a host, at least."""
        return _members_per_host(tuple(self.mesh_shape.items()), axes)

    def ring_bandwidth(self, axes: tuple[str, ...]) -> float:
        """Bytes/s that one GPU sends in a ring along these axes.

        Between hosts a ring uses the network adapters of all its members in a host.
        """
        here, link = self.members_per_host(axes), self.gpu.link_bandwidth
        if here < self.group_size(axes):
            link = min(link, here * self.network_bandwidth)
        return LINK_EFFICIENCY * link

    def exchange_bandwidth(self, axes: tuple[str, ...]) -> float:
        """Bytes/s that one GPU sends when all members exchange parts pairwise."""
        here, size = self.members_per_host(axes), self.group_size(axes)
        if here == size:
            return LINK_EFFICIENCY * self.gpu.link_bandwidth
        return LINK_EFFICIENCY * self.network_bandwidth * (size - 1) / (size - here)

    def neighbour_bandwidth(self, axes: tuple[str, ...]) -> float:
        """Bytes/s at which every GPU of a group sends to the next, the slowest pair's."""
        same_host = self.members_per_host(axes) == self.group_size(axes)
        return LINK_EFFICIENCY * (self.gpu.link_bandwidth if same_host else self.network_bandwidth)

    def group_size(self, axes: tuple[str, ...]) -> int:
        """GPUs in a group along these mesh axes."""
        return int(np.prod([self.mesh_shape[axis] for axis in axes]))


@functools.lru_cache(maxsize=1024)
def _members_per_host(mesh_shape: tuple[tuple[str, int], ...], axes: tuple[str, ...]) -> int:
    names, sizes = zip(*mesh_shape, strict=True)
    devices = np.arange(np.prod(sizes)).reshape(sizes)
    along = [names.index(axis) for axis in axes]
    groups = np.moveaxis(devices, along, range(-len(along), 0))
    members = int(np.prod([sizes[axis] for axis in along]))
    hosts = groups.reshape(-1, members) // GPUS_PER_HOST
    return min(int(np.unique(group, return_counts=True)[1].min()) for group in hosts)
