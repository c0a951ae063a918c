"""What kernels of a profile are counted as."""

import pytest

from dongwu_jax.training.records import kernel_table as kernels

EVENTS = [
    ("nvjet_sm90_tst_128x160_64x5_2x1_v_bz_NNT", 0.0, 2.0),
    ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 1.0, 3.5),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", 4.0, 5.0),
    ("loop_add_fusion", 5.0, 5.25),
    ("memcpy128", 5.25, 5.5),
]


def test_seconds_by_purpose():
    assert kernels.by_purpose(EVENTS) == {
        "matrix products": 2.0,
        "exchanges": 2.5,
        "attention": 1.0,
        "everything else": 0.5,
    }


def test_exchanges_and_what_of_them_nothing_hides():
    busy, exposed = kernels.communication(EVENTS)
    assert (busy, exposed) == pytest.approx((2.5, 1.5))


def test_a_table_of_two_steps():
    table = kernels.kernel_table(EVENTS)
    assert (table.total, table.elapsed, table.idle) == pytest.approx((6.0, 5.5, 0.5))
    record = kernels.as_record(table, steps=2)
    assert record["elapsed_ms"] == pytest.approx(2750)
    assert record["kernels"][0] == [EVENTS[1][0], pytest.approx(1250), 0.5]
    assert dict(record["purposes"])["attention"] == pytest.approx(500)
