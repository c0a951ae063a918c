"""Long series made short without losing what a person looks for in them."""

import numpy as np

MAX_POINTS = 1600
_WINDOW_OF_SERIES = 100  # smoothed over a hundredth of the series to each side
_WINDOW_OF_BEGINNING = 5  # and no wider than a fifth of what came before, where it falls steeply


def thin(steps: np.ndarray, values: np.ndarray, max_points: int = MAX_POINTS) -> np.ndarray:
    """Indexes of the points to draw: the lowest and the highest of each of equal stretches.

    Args:
        steps: ascending [points].
        values: finite [points].
        max_points: about how many to keep; shorter series are kept whole.
    """
    if len(steps) <= max_points:
        return np.arange(len(steps))
    edges = np.linspace(steps[0], steps[-1], max_points // 2 + 1)
    starts = np.unique(np.searchsorted(steps, edges[:-1]))
    order = np.lexsort((values, np.searchsorted(starts, np.arange(len(steps)), side="right")))
    stops = np.append(starts[1:], len(steps))
    ends = np.array([0, len(steps) - 1])
    return np.unique(np.concatenate([ends, order[starts], order[stops - 1]]))


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window around each point that grows from nothing: no lag where a loss falls."""
    count = len(values)
    numbers = np.arange(count)
    reach = np.minimum(numbers // _WINDOW_OF_BEGINNING, max(count // _WINDOW_OF_SERIES, 1))
    first, last = numbers - reach, np.minimum(numbers + reach, count - 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[last + 1] - sums[first]) / (last + 1 - first)


def smooth_rate(values: np.ndarray) -> np.ndarray:
    """The same for positive amounts a second: total amount over total time around each point."""
    return 1 / smooth(1 / values) if (values > 0).all() else smooth(values)


def rounded(values: np.ndarray) -> list[float]:
    """Five significant digits, which is more than a screen shows."""
    return [float(f"{value:.5g}") for value in values.tolist()]
