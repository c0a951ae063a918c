"""Where mesh axes lie among hosts of eight GPUs, and how fast their links are."""

import pytest

from dongwu_jax.errors import UserError
from dongwu_jax.plan.cluster import GPUS, LINK_EFFICIENCY, Cluster, find_gpu

H100 = GPUS["h100"]


def _cluster(**sizes: int) -> Cluster:
    shape = {"pipe": 1, "data": 1, "fsdp": 1, "context": 1, "tensor": 1} | sizes
    return Cluster(H100, shape, network_bandwidth=50e9)


def test_inner_axes_share_a_host() -> None:
    cluster = _cluster(pipe=2, fsdp=4, tensor=4)
    assert cluster.members_per_host(("tensor",)) == 4
    assert cluster.members_per_host(("fsdp",)) == 2
    assert cluster.members_per_host(("fsdp", "tensor")) == 8
    assert cluster.members_per_host(("pipe",)) == 1


def test_a_ring_over_hosts_uses_the_adapters_of_all_its_members() -> None:
    cluster = _cluster(data=4, fsdp=8)
    assert cluster.ring_bandwidth(("fsdp",)) == LINK_EFFICIENCY * 450e9
    assert cluster.ring_bandwidth(("data",)) == LINK_EFFICIENCY * 50e9
    assert cluster.ring_bandwidth(("data", "fsdp")) == LINK_EFFICIENCY * 8 * 50e9


def test_an_exchange_over_hosts_sends_most_over_the_network() -> None:
    cluster = _cluster(context=16)
    assert cluster.exchange_bandwidth(("context",)) == LINK_EFFICIENCY * 50e9 * 15 / 8
    assert cluster.neighbour_bandwidth(("context",)) == LINK_EFFICIENCY * 50e9
    assert _cluster(context=8).neighbour_bandwidth(("context",)) == LINK_EFFICIENCY * 450e9


def test_an_unknown_gpu() -> None:
    assert find_gpu("H100") is H100
    with pytest.raises(UserError, match="--gpu v100: unknown GPU; choose h100, h200, a100"):
        find_gpu("v100")
