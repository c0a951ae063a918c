"""What kernels of a profile are counted as."""

from pathlib import Path

import pytest
from command_lines import load_script

table = load_script(Path(__file__).parents[2] / "benchmarks" / "kernel_table.py")

EVENTS = [
    ("nvjet_sm90_tst_128x160_64x5_2x1_v_bz_NNT", 0.0, 2.0),
    ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 1.0, 3.5),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", 4.0, 5.0),
    ("loop_add_fusion", 5.0, 5.25),
    ("memcpy128", 5.25, 5.5),
]


def test_seconds_by_purpose():
    assert table.by_purpose(EVENTS) == {
        "matrix products": 2.0,
        "exchanges": 2.5,
        "attention": 1.0,
        "everything else": 0.5,
    }


def test_exchanges_and_what_of_them_nothing_hides():
    busy, exposed = table.communication(EVENTS)
    assert (busy, exposed) == pytest.approx((2.5, 1.5))
