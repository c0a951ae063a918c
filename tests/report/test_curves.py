"""Series made short, smoothed, and searched for spikes."""

import itertools

import numpy as np
import pytest

from dongwu_jax.report.anomalies import find_spikes
from dongwu_jax.report.curves import MAX_POINTS, smooth, smooth_rate, thin
from dongwu_jax.report.metrics import as_metrics


@pytest.mark.parametrize("count", [1, 2, 1600, 1601, 100_003])
def test_thin_keeps_ends_and_extremes_of_every_stretch(count):
    generator = np.random.default_rng(count)
    steps = np.cumsum(generator.integers(1, 9, count))
    values = generator.normal(size=count)
    places = thin(steps, values)
    assert len(places) <= MAX_POINTS + 2
    assert (np.diff(places) > 0).all()
    assert {0, count - 1, int(values.argmin()), int(values.argmax())} <= set(places.tolist())
    edges = np.linspace(steps[0], steps[-1], MAX_POINTS // 2 + 1)
    for low, high in itertools.pairwise(edges[:51]):
        inside = np.flatnonzero((steps >= low) & (steps < high))
        if count > MAX_POINTS and len(inside):
            kept = places[np.isin(places, inside)]
            assert values[kept].min() == values[inside].min()
            assert values[kept].max() == values[inside].max()


def test_smooth_is_the_mean_around_and_starts_where_the_series_starts():
    values = np.random.default_rng(0).normal(size=1000)
    mean = smooth(values)
    assert mean[0] == values[0]
    assert mean[500] == pytest.approx(values[490:511].mean())
    assert mean[10] == pytest.approx(values[8:13].mean())
    np.testing.assert_allclose(smooth(np.full(50, 3.0)), 3.0)


def test_smoothed_rates_are_amounts_over_time():
    """A step reported late takes its time from the next: 100 in 1 s, 100 in 0.25 s."""
    values = np.tile([100.0, 400.0], 500)
    assert smooth_rate(values)[500] == pytest.approx(100 / np.mean(100 / values[490:511]))
    assert smooth_rate(np.array([0.0, 1.0]))[1] == smooth(np.array([0.0, 1.0]))[1]


def test_spikes_are_found_and_noise_is_none():
    generator = np.random.default_rng(1)
    losses = 2 + 5 / np.sqrt(np.arange(1, 3001)) + generator.normal(0, 0.02, 3000)
    records = [{"step": step, "loss": loss} for step, loss in enumerate(losses.tolist(), 1)]
    assert find_spikes(as_metrics([dict(record) for record in records])) == []
    for step, height in ((700, 0.5), (701, 1.5), (702, 0.7), (2000, 1.0)):
        records[step - 1]["loss"] += height
    spikes = find_spikes(as_metrics(records))
    assert [(spike.step, spike.count) for spike in spikes] == [(701, 3), (2000, 1)]
