"""Hosts that are slower than others."""

import pytest
from run_material import Clock

from dongwu_jax.report.hosts import host_times
from dongwu_jax.report.run_folder import read_run_folder


def test_the_slow_host_comes_first(tmp_path):
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    for step, times in ((10, (2.0, 2.0, 3.0)), (20, (2.0, 2.2, 4.0)), (30, (1.0, 3.0, 2.0))):
        clock.event("step_times", step=step, seconds=dict(zip("abc", times, strict=True)))
    clock.event("step_times", step=40, seconds="not a mapping")
    c, b, a = host_times(read_run_folder(clock.write()).sessions)
    assert (c.host, b.host, a.host) == ("c", "b", "a")
    assert (c.median, c.latest) == (3.0, 2.0)
    assert c.slowness == pytest.approx(1.5)  # of 1.5, 4 / 2.2 and 1
    assert (c.worst, c.worst_step) == (pytest.approx(4 / 2.2), 20)
    assert [host.slowest for host in (c, b, a)] == pytest.approx([2 / 3, 1 / 3, 0])


def test_nothing_recorded(tmp_path):
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    assert host_times(read_run_folder(clock.write()).sessions) == []
